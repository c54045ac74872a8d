"""Terminal tables are as wide as the terminal, never wrap, say what they left out, and keep folders apart."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from study.report.terminal import WIDTH, Column, compare_summary, distinct_names, front_summary, table_text
from tests.study.rows import made_up_study
from tests.study.tiny import TINY

COLUMNS = (
    Column("name", words=True),
    Column("first to go", drop=2),
    Column("long", drop=1, words=True),
    Column("ASR"),
)
ROWS = [["super_ft", "1.0", "lr=" + "0" * 60, "0.1"], ["ft", "2.0", "[b]", "0.2"]]


def _folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    spec = {**TINY, "name": "made-up", "attacks": ["badnets", "blended"], "baselines": ["none", "ft", "scratch"]}
    (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made_up_study(trials=8)))
    return folder


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_a_table_that_fits_is_whole() -> None:
    text = table_text("title", COLUMNS, ROWS, width=100)
    assert all(word in text for word in ("name", "first to go", "long", "ASR", "0" * 60, "[b]"))
    assert "left out" not in text


@pytest.mark.parametrize("width", [90, 60, 30, 12])
def test_no_line_is_wider_than_asked_and_no_row_wraps(width: int) -> None:
    lines = table_text("a title of several words", COLUMNS, ROWS, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.strip().startswith(("super", "ft")) for line in lines) == len(ROWS)


def test_the_least_important_columns_go_first_and_are_named() -> None:
    text = table_text("title", COLUMNS, ROWS, width=90)
    assert "left out to fit 90 characters: first to go" in text
    assert "0" * 60 in text
    text = table_text("title", COLUMNS, ROWS, width=60)
    assert "left out to fit 60 characters: long" in text
    assert "first to go" in text, "it fits again once the long one is gone"
    assert "ASR" in table_text("title", COLUMNS, ROWS, width=20)


def test_without_a_terminal_the_width_is_120_unless_columns_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path / "study")
    assert max(map(len, front_summary(folder).splitlines())) <= WIDTH == 120
    monkeypatch.setenv("COLUMNS", "50")
    narrow = front_summary(folder)
    assert max(map(len, narrow.splitlines())) <= 50
    assert "setting" in narrow.partition("left out")[2]
    monkeypatch.setenv("COLUMNS", "250")
    wide = front_summary(folder)
    assert "left out" not in wide
    assert "lr_max1=" in wide
    assert "1 E is one training epoch" in wide


def test_a_terminal_is_asked_for_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda fallback: os.terminal_size((33, 24)))
    assert "left out to fit 33 characters" in table_text("title", COLUMNS, ROWS)


def test_folders_are_named_as_briefly_as_keeps_them_apart() -> None:
    assert distinct_names(["/a/x/one", "/a/x/two"]) == ["one", "two"]
    assert distinct_names(["/a/x/run", "/a/y/run", "/a/z"]) == ["x/run", "y/run", "z"]
    assert distinct_names(["/run", "/a/run"]) == ["run", "a/run"]
    assert distinct_names(["s3://b/k/run", "/k/run"]) == ["b/k/run", "k/run"]
    assert distinct_names(["/a/run", "/a/b/../run"]) == ["run", "run"], "one folder"


def test_a_relative_folder_and_its_namesake_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = distinct_names(["run", "/elsewhere/run"])
    assert names == [f"{tmp_path.name}/run", "elsewhere/run"]


def test_compared_folders_of_one_name_stay_two(tmp_path: Path) -> None:
    folders = [_folder(tmp_path / name / "run") for name in ("first", "second")]
    text = compare_summary({str(folder): folder for folder in folders})
    assert "first/run" in text
    assert "second/run" in text
    assert str(tmp_path) not in text
    assert max(map(len, text.splitlines())) <= WIDTH
