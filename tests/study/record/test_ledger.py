"""The ledger keeps every finished trial, once, through crashes and damage."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from study.record.columns import COLUMNS, SCHEMA, to_frame
from study.record.files import write_atomically
from study.record.ledger import Ledger, key_as_name
from study.spec.yaml_io import SpecError
from tests.study.rows import failed_row, make_row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "trials.jsonl"


def _filled(path: Path, n: int = 3) -> list[bytes]:
    with Ledger(path) as ledger:
        for i in range(n):
            ledger.append(make_row(f"badnets/super_ft/{i:04d}"))
    return path.read_bytes().splitlines(keepends=True)


def test_appended_rows_are_one_line_each_and_come_back_in_order(path: Path) -> None:
    lines = _filled(path)
    assert [json.loads(line)["trial"][-4:] for line in lines] == ["0000", "0001", "0002"]
    again = Ledger(path)
    assert again.rows() == [make_row(f"badnets/super_ft/{i:04d}") for i in range(3)]
    assert len(again) == 3
    assert again.damaged == []
    assert again.has("badnets/super_ft/0001", "badnets", 0)
    assert not again.has("badnets/super_ft/0001", "badnets", 1)


def test_a_row_is_on_disk_before_append_returns(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(make_row())
    assert Ledger.read(path).rows() == ledger.rows()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), np.float64("nan")])
def test_a_number_that_is_not_finite_is_refused_by_name(path: Path, value: float) -> None:
    ledger = Ledger(path)
    with pytest.raises(ValueError, match=r"clean_accuracy is -?(nan|inf)"):
        ledger.append(make_row(clean_accuracy=value, clean_accuracy_search=0.5, clean_accuracy_report=0.5))
    assert path.read_bytes() == b""


def test_a_value_json_cannot_hold_is_refused_with_the_trial_named(path: Path) -> None:
    with pytest.raises(TypeError, match="badnets/super_ft/0000"):
        Ledger(path).append(make_row(steps=np.int64(3)))


@pytest.mark.parametrize("missing", ["trial", "attack", "seed"])
def test_a_row_without_its_key_is_refused(path: Path, missing: str) -> None:
    row = make_row()
    del row[missing]
    with pytest.raises(ValueError, match=missing):
        Ledger(path).append(row)


def test_keys_that_differ_have_files_that_differ() -> None:
    plain = ("badnets/super_ft/0003", "badnets", 0, 1)
    assert key_as_name(plain) == "badnets--super_ft--0003--badnets--0--1"
    labels = ("ft a", "ft/a", "ft+a", "ft--a", "ft-a", "ft\u00e4a", "ft a ")
    names = [key_as_name((f"badnets/{label}/baseline", "badnets", 0, 0)) for label in labels]
    assert len(set(names)) == len(labels)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    long = [key_as_name((f"{'folder' * 60}{end}/ft/baseline", "badnets", 0, 0)) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 240


def test_the_same_trial_is_not_added_twice(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(make_row())
    ledger.append(make_row(seed=1))
    with pytest.raises(ValueError, match="already in"):
        ledger.append(make_row(asr=0.5))
    assert len(ledger) == 2


@pytest.mark.parametrize("keep", [1, 40, -2])
def test_a_truncated_last_line_is_kept_aside_named_and_the_study_goes_on(path: Path, keep: int) -> None:
    lines = _filled(path)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    ledger = Ledger(path)
    assert [row["trial"][-4:] for row in ledger.rows()] == ["0000", "0001"]
    assert len(ledger.damaged) == 1
    assert all(word in ledger.damaged[0] for word in ("trials.jsonl", "line 3", "cut off", "trials.jsonl.damaged"))
    assert path.with_name("trials.jsonl.damaged").read_bytes() == lines[2][:keep] + b"\n"
    assert path.read_bytes() == b"".join(lines[:2])
    ledger.append(make_row("badnets/super_ft/0002"))
    assert path.read_bytes() == b"".join(lines)
    assert Ledger(path).damaged == []


def test_a_whole_row_that_lacks_only_its_newline_is_kept(path: Path) -> None:
    lines = _filled(path)
    path.write_bytes(b"".join(lines)[:-1])
    ledger = Ledger(path)
    assert len(ledger) == 3
    assert ledger.damaged == []
    ledger.append(make_row("badnets/super_ft/0003"))
    assert len(Ledger.read(path)) == 4


@pytest.mark.parametrize(
    "junk",
    [
        b"not json",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"trial": "t", "attack": "a", "seed": 0, "asr": NaN}',
        b'{"asr": 1}',
        b'{"trial": "t", "attack": "a", "seed": 0}',
    ],
)
def test_a_broken_line_in_the_middle_costs_only_itself(path: Path, junk: bytes) -> None:
    lines = _filled(path)
    path.write_bytes(lines[0] + junk + b"\n" + b"".join(lines[1:]))
    ledger = Ledger(path)
    assert len(ledger) == 3
    assert "line 2" in ledger.damaged[0]
    assert path.read_bytes() == b"".join(lines)
    assert path.with_name("trials.jsonl.damaged").read_bytes() == junk + b"\n"


def test_of_repeated_rows_the_first_counts_and_the_others_are_reported(path: Path) -> None:
    lines = _filled(path, n=1)
    path.write_bytes(lines[0] + json.dumps(make_row("badnets/super_ft/0000", asr=0.7)).encode() + b"\n")
    ledger = Ledger(path)
    assert [row["asr"] for row in ledger.rows()] == [0.1]
    assert "repeats trial 'badnets/super_ft/0000', attack 'badnets', seed 0" in ledger.damaged[0]


def test_looking_changes_nothing_even_while_a_line_is_being_written(path: Path) -> None:
    lines = _filled(path)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    before = path.read_bytes(), sorted(os.listdir(path.parent))
    ledger = Ledger.read(path)
    assert len(ledger) == 2
    assert "line 3 is cut off" in ledger.damaged[0]
    assert (path.read_bytes(), sorted(os.listdir(path.parent))) == before
    with pytest.raises(ValueError, match="reading only"):
        ledger.append(make_row("badnets/super_ft/0009"))


def test_looking_at_a_study_without_a_ledger_finds_no_rows_and_makes_no_file(path: Path) -> None:
    assert Ledger.read(path).rows() == []
    assert not path.parent.exists()


def test_a_row_that_does_not_fit_on_the_disk_leaves_the_ledger_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path)
    ledger.append(make_row())
    whole = path.read_bytes()
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
    with pytest.raises(OSError, match="free some disk space"):
        ledger.append(make_row(seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == whole
    ledger.append(make_row(seed=1))
    assert len(Ledger.read(path)) == 2


def test_the_table_has_the_fixed_columns_in_order_with_settings_in_their_place() -> None:
    frame = to_frame([make_row(**{"param.lr_max1": 0.1, "param.iterations": 500, "detector_auroc": 0.9})])
    names = [column.name for column in COLUMNS]
    place = names.index("role")
    expected = [*names[:place], "param.iterations", "param.lr_max1", *names[place:], "detector_auroc"]
    assert list(frame.columns) == expected
    assert list(to_frame([]).columns) == names
    first = ["study", "trial", "attack", "defense", "defense_label", "dataset", "model", "seed", "defense_seed"]
    first += ["status", "asr", "clean_accuracy"]
    assert names[: len(first)] == first
    assert len(set(names)) == len(names)


def test_missing_values_stay_missing_and_settings_keep_their_type() -> None:
    settings = {"param.iterations": 500, "param.lr": 3e-4, "param.scope": "all", "param.augment": True}
    frame = to_frame([failed_row("badnets/ft/baseline"), make_row(**settings)])
    assert pd.isna(frame.loc[0, "asr"])
    assert pd.isna(frame.loc[0, "param.iterations"])
    assert frame.loc[1, "param.iterations"] == 500
    assert frame.loc[1, "param.augment"] is True
    types = {"asr": "float64", "seed": "Int64", "param.iterations": "Int64", "param.lr": "float64", "error": "object"}
    types |= {"param.scope": "object", "param.augment": "object", "published": "boolean", "collapsed": "boolean"}
    assert {name: str(frame[name].dtype) for name in types} == types


# The committed studies, and some of the first version of the columns.
ROOT = Path(__file__).parents[3]
SHIPPED = sorted(
    [*(ROOT / "benchmarks" / "results").glob("*/trials.jsonl"), *(ROOT / "tests" / "ledgers").glob("*/trials.jsonl")]
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_every_number_of_a_shipped_ledger_is_a_number_in_pandas(path: Path) -> None:
    rows, frame = [json.loads(line) for line in path.read_text().splitlines()], Ledger.read(path).to_frame()
    numeric = set(frame.select_dtypes("number").columns)
    for name in {name for row in rows for name in row}:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and all(type(value) in (int, float) for value in values):
            assert name in numeric, name
    known = {column.name for column in COLUMNS}
    unknown = {name for name in frame.columns if name not in known and not name.startswith(("param.", "note."))}
    assert unknown == set()


def test_rows_of_the_first_version_are_read_in_todays_columns(path: Path) -> None:
    rows = [make_row("badnets/super_ft/0003", flags=["collapsed", "features_reused"], scenario="new_head")]
    rows.append(make_row("badnets/ft/baseline"))
    old = [{key: row[key] for key in row if key not in ("schema", "search", "collapsed")} for row in rows]
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    before = path.read_bytes()
    first, second = Ledger(path).rows()
    assert (first["search"], second["search"]) == ("badnets/super_ft", None)
    assert (first["collapsed"], first["flags"], second["collapsed"]) == (True, ["features_reused"], False)
    assert first["scenario"] == "new-head"
    assert path.read_bytes() == before


def test_a_ledger_of_a_later_version_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(make_row(schema=SCHEMA + 1)) + "\n{half")
    before = path.read_bytes()
    for opened in (Ledger, Ledger.read):
        with pytest.raises(SpecError, match=rf"trials.jsonl, line 1: written by a later version .* {SCHEMA + 1}"):
            opened(path)
    assert path.read_bytes() == before


def test_the_csv_reads_back_with_pandas(path: Path) -> None:
    ledger = Ledger(path)
    ledger.append(make_row(**{"param.iterations": 500, "flags": ["diverged", "late"]}))
    ledger.append(failed_row("badnets/ft/baseline", error='a, "quoted"\nerror'))
    ledger.to_frame().to_csv(path.with_name("trials.csv"), index=False)
    table = pd.read_csv(path.with_name("trials.csv"))
    assert list(table.columns) == list(ledger.to_frame().columns)
    assert table.loc[0, "flags"] == "diverged;late"
    assert table.loc[0, "param.iterations"] == 500
    assert table.loc[1, "error"] == 'a, "quoted"\nerror'
    assert pd.isna(table.loc[1, "asr"])


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    write_atomically(path, b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert os.listdir(tmp_path) == ["report.html"]
    assert path.read_bytes() == b"old"


def test_failed_rows_can_be_taken_out_and_are_kept_aside(path: Path) -> None:
    def row(seed: int, status: str) -> dict[str, Any]:
        return {"trial": "a/b/baseline", "attack": "a", "seed": seed, "status": status}

    with Ledger(path) as ledger:
        for seed, status in enumerate(("ok", "failed", "diverged", "failed")):
            ledger.append(row(seed, status))
        assert ledger.set_aside_failed() == 2
        assert [item["seed"] for item in ledger.rows()] == [0, 2]
        assert not ledger.has("a/b/baseline", "a", 1)
        ledger.append(row(1, "ok"))  # to the file that took the old one's place
        assert ledger.set_aside_failed() == 0
    assert [item["seed"] for item in Ledger.read(path).rows()] == [0, 2, 1]
    aside = path.with_name("trials.jsonl.retried").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in aside] == [1, 3]
    with pytest.raises(ValueError, match="opened for reading only"):
        Ledger.read(path).set_aside_failed()
