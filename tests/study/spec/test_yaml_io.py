"""Specs are read from YAML and --set: floats as people write them, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.spec.yaml_io import (
    SpecError,
    dump_yaml,
    merge_assignments,
    parse_yaml,
    read_yaml_mapping,
    without_password,
)

FLOATS = [
    ("3e-4", 3e-4),
    ("1e5", 1e5),
    ("1E5", 1e5),
    ("-1e-3", -1e-3),
    ("+2e+2", 200.0),
    (".5", 0.5),
    ("-.5", -0.5),
    (".5e1", 5.0),
    ("1.", 1.0),
    ("1.5e3", 1500.0),
    ("3.0e-4", 3e-4),
    ("0.1", 0.1),
]


@pytest.mark.parametrize(("text", "value"), FLOATS)
def test_floats_are_numbers_in_yaml_and_in_assignments(text: str, value: float) -> None:
    assert parse_yaml(f"lr: {text}", "here") == {"lr": value}
    assert isinstance(parse_yaml(text, "here"), float)
    assert merge_assignments({}, [f"lr={text}"]) == {"lr": value}
    assert merge_assignments({}, [f"range=[{text}, 7]"]) == {"range": [value, 7]}


@pytest.mark.parametrize("text", ["e5", "1e", "badnets", "1.2.3", "cpu", ".", "1e5x", "v1"])
def test_what_is_no_number_stays_text(text: str) -> None:
    assert parse_yaml(f"key: {text!r}", "here") == {"key": text}
    assert merge_assignments({}, [f"key={text}"]) == {"key": text}


@pytest.mark.parametrize("value", ["1e5", "3e-4", ".5", "1.", "2024", "true", "null", "a: b", "", 1e-5, 3e-4, 1e22, 7])
def test_a_dumped_value_is_read_back_as_it_was(value: Any) -> None:
    again = parse_yaml(dump_yaml({"key": value}), "here")["key"]
    assert again == value
    assert type(again) is type(value)


def test_assignments_reach_nested_keys_and_leave_the_rest() -> None:
    given = {"search": {"trials": 4, "space": {"super_ft": "ordered"}}, "name": "x"}
    merged = merge_assignments(
        given,
        ["search.trials=8", "search.ranges.super_ft.iterations=[20, 500]", "attack.badnets.size=4", "seeds=[1, 2]"],
    )
    assert merged == {
        "search": {
            "trials": 8,
            "space": {"super_ft": "ordered"},
            "ranges": {"super_ft": {"iterations": [20, 500]}},
        },
        "name": "x",
        "attack": {"badnets": {"size": 4}},
        "seeds": [1, 2],
    }
    assert given == {"search": {"trials": 4, "space": {"super_ft": "ordered"}}, "name": "x"}


def test_the_last_assignment_wins_and_an_empty_value_is_none() -> None:
    assert merge_assignments({}, ["a=1", "a=2", "b="]) == {"a": 2, "b": None}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert merge_assignments({}, ["search.storage=postgresql://u:p@h/db?sslmode=require"]) == {
        "search": {"storage": "postgresql://u:p@h/db?sslmode=require"}
    }


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("trials", "write key=value"),
        ("=3", "write key=value"),
        ("a..b=3", "write key=value"),
        (".a=3", "write key=value"),
        ("search.trials.x=3", "trials is 4"),
        ("attacks=[badnets", "attacks"),
        ("name=a: b: c", "name"),
    ],
)
def test_a_bad_assignment_is_named_in_one_line(assignment: str, named: str) -> None:
    with pytest.raises(SpecError) as raised:
        merge_assignments({"search": {"trials": 4}}, [assignment])
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"name: [a\nb: c\n", "line 2"),
        (b"name: x\n\tb: c\n", "line 2"),
        (b"- badnets\n", "mapping"),
        (b"", "mapping"),
        (b"just text", "mapping"),
        (b"name: \xff\xfe", "cannot read"),
        (b"a: !!python/object/apply:os.getcwd []\n", "line 1"),
        (
            b"clean_fraction: 0.1\nname: x\nclean_fraction: 0.5\n",
            "line 3, column 1: not valid YAML: clean_fraction stands",
        ),
        (b"search: {trials: 1, trials: 2}\n", "trials stands here twice"),
        (b"a: " + b"[" * 3000, "not valid YAML"),
    ],
)
def test_a_broken_yaml_file_is_named_in_one_line(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as raised:
        read_yaml_mapping(path)
    assert named in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read"):
        read_yaml_mapping(tmp_path)
    with pytest.raises(SpecError, match=r"none\.yaml"):
        read_yaml_mapping(tmp_path / "none.yaml")


def test_a_date_is_a_text_also_where_there_is_no_such_day(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: 2020-13-45\nother: 2020-01-02\n")
    assert read_yaml_mapping(path) == {"name": "2020-13-45", "other": "2020-01-02"}
    path.write_text(dump_yaml({"name": "2020-01-02"}))
    assert read_yaml_mapping(path) == {"name": "2020-01-02"}


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("postgresql://u:p%40ss@h/db", "postgresql://u:***@h/db", ("p%40ss", "p@ss")),
        ("postgresql://h/db?user=u&password=s3cret", "postgresql://h/db?user=u&password=***", ("s3cret",)),
        ("mysql://u:one@h/db?passwd=other1", "mysql://u:***@h/db?passwd=***", ("other1", "one")),
        ("mysql://u:wh?o@h/db", "mysql://u:***@h/db", ("wh?o",)),
        ("sqlite:///here.db", "sqlite:///here.db", ()),
        ("journal", "journal", ()),
    ],
)
def test_a_database_url_is_shown_without_its_passwords(url: str, shown: str, secrets: tuple[str, ...]) -> None:
    assert without_password(url) == (shown, secrets)
