"""A study with real processes and real Ray on this machine: killed, continued, complete, repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from optuna.trial import TrialState

from study.record.columns import COLUMNS
from study.run.repeat import differences
from tests.study.processes import GATED, PATIENCE, Place, new_place, optuna_states, rows_of, wait_for
from trainables.columns import CIRCUMSTANCES

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("engine")) as made:
        yield made


def modification_times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != ".lock"}


@pytest.fixture(scope="module")
def killed(place: Place) -> SimpleNamespace:
    """A study killed in the middle, half a line in its ledger and a wrong byte in its victim; then continued.

    It is in the middle since most of its trials wait for a gate that is opened only then.
    """
    search = {"trials": 8, "startup_trials": 2, "ranges": {"gated": {"iterations": [20, 500]}}}
    spec = place.spec("killed", **GATED, search=search)
    directory = place.folder / "runs" / "killed"
    first = place.start("run", spec, "--out", directory, plug_in=True)
    wait_for(lambda: len(rows_of(directory)) >= 3, PATIENCE, lambda: first.stderr.read_text())
    first.process.send_signal(signal.SIGKILL)
    ended = first.end()
    place.wait_until_killed()
    before, left = rows_of(directory), place.left_over()
    with (directory / "trials.jsonl").open("a") as ledger:
        ledger.write('{"study": "killed", "trial": "badnets/gated/00')
    model = next(place.store.glob("badnets-*/model.safetensors"))
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    place.open_gate()
    second = place.run("run", spec, "--out", directory, plug_in=True, timeout=PATIENCE)
    place.wait_until_alone()
    return SimpleNamespace(
        spec=spec, directory=directory, before=before, first=ended, second=second, left=left, model=model
    )


def test_a_killed_study_is_continued_to_exactly_its_trials(killed: SimpleNamespace) -> None:
    assert killed.first.code == -signal.SIGKILL
    assert 3 <= len(killed.before) < 9
    assert killed.second.code == 0, killed.second.stderr
    rows = rows_of(killed.directory)
    expected = [f"badnets/gated/{number:04d}" for number in range(8)] + ["badnets/none/baseline"]
    assert sorted(row["trial"] for row in rows) == expected
    assert {row["status"] for row in rows} == {"ok"}
    assert f"continuing: {len(killed.before)} of 9 trials are done" in killed.second.stderr


def test_rows_measured_before_the_kill_are_kept_as_they_were(killed: SimpleNamespace) -> None:
    assert rows_of(killed.directory)[: len(killed.before)] == killed.before


def test_no_optuna_trial_is_left_running_after_a_kill(killed: SimpleNamespace) -> None:
    states = optuna_states(killed.directory)
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == 8


def test_no_setting_is_measured_twice(killed: SimpleNamespace) -> None:
    searched = [row for row in rows_of(killed.directory) if row["role"] == "search"]
    settings = [tuple(sorted(i for i in row.items() if i[0].startswith("param."))) for row in searched]
    assert len(set(settings)) == len(settings) == 8
    rates = [(row["trial"], row["param.lr_max1"], row["param.iterations"]) for row in searched]
    assert [trial for trial, peak, length in rates if (peak, length) == (0.1, 500)] == ["badnets/gated/0000"]


def test_a_truncated_line_is_kept_aside_and_named_and_the_study_goes_on(killed: SimpleNamespace) -> None:
    aside = killed.directory / "trials.jsonl.damaged"
    assert aside.read_text().startswith('{"study": "killed", "trial": "badnets/gated/00')
    assert "trials.jsonl, line" in killed.second.stderr
    assert aside.name in killed.second.stderr


def test_a_corrupted_victim_is_named_and_rebuilt(killed: SimpleNamespace) -> None:
    assert f"damaged file {killed.model}" in killed.second.stderr
    facts = json.loads(killed.model.with_name("artifact.json").read_text())["content"]
    import hashlib

    assert hashlib.sha256(killed.model.read_bytes()).hexdigest() == facts["files"]["model.safetensors"]


def test_what_the_killed_driver_left_is_cleared_away(killed: SimpleNamespace, place: Place) -> None:
    assert killed.left, "a killed process cannot remove its folder"
    assert place.left_over() == []
    assert place.processes() == []


def test_a_finished_study_leaves_every_file_of_the_design(killed: SimpleNamespace) -> None:
    files = {path.name for path in killed.directory.iterdir()}
    assert files >= {
        "study.yaml", "trials.jsonl", "trials.csv", "front.csv", "optuna.journal", "report.html", "figures",
    }  # fmt: skip
    assert list((killed.directory / "figures").glob("*.png"))
    report = (killed.directory / "report.html").read_text()
    assert "badnets" in report
    assert "<script src=" not in report
    assert "<link " not in report
    table = pd.read_csv(killed.directory / "trials.csv")
    settings = [name for name in table.columns if name.startswith("param.")]
    assert {"param.lr_base", "param.lr_max1", "param.lr_max2", "param.iterations"} <= set(settings)
    fixed = [column.name for column in COLUMNS]
    assert [name for name in table.columns if name in fixed] == fixed
    assert len(table) == 9
    front = pd.read_csv(killed.directory / "front.csv")
    assert set(front["trial"]) <= set(table["trial"])


def test_rows_hold_what_a_reader_needs_to_trust_them(killed: SimpleNamespace) -> None:
    for row in rows_of(killed.directory):
        assert row["study"] == "killed"
        for metric in ("asr", "clean_accuracy", "robust_accuracy"):
            for half in ("", "_search", "_report"):
                assert 0 <= row[metric + half] <= 1
        assert row["wall_seconds"] > 0
        assert "torch" in row["versions"]
        assert row["error"] is None
        if row["defense"] == "gated":
            assert row["steps"] == sum(round(0.1 * row["param.iterations"]) for _ in range(2))
            assert row["backward_samples"] == 16 * row["steps"]


def test_a_trial_is_repeated_in_one_process_that_has_more_threads(killed: SimpleNamespace, place: Place) -> None:
    row = next(row for row in rows_of(killed.directory) if row["trial"] == "badnets/gated/0003")
    command = [sys.executable, "-m", "study.cli", "trial", "--like", str(killed.directory), row["trial"], "--json"]
    done = subprocess.run(
        [*command, "--store", str(place.folder / "another")],  # its victim is trained anew
        capture_output=True, text=True, timeout=240, check=False,
        env=place.environment(plug_in=True) | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout)
    assert now["threads"] == row["threads"] == 1
    assert now["victim_trained_on"] == row["victim_trained_on"] == "cpu, 1 thread, float32"
    assert {"asr", "clean_accuracy_report", "asr_by_class", "param.lr_max1"} <= set(row) & set(now) - CIRCUMSTANCES
    assert differences(now, row) == {}


def test_the_same_command_on_a_finished_study_does_nothing_but_say_so(killed: SimpleNamespace, place: Place) -> None:
    before = modification_times(killed.directory)
    again = place.run("run", killed.spec, "--out", killed.directory, plug_in=True)
    assert again.code == 0, again.stderr
    assert "is finished: 9 trials; nothing was run" in again.stdout
    assert modification_times(killed.directory) == before
    assert place.processes() == []


def test_a_lost_report_is_written_again_without_running_anything(killed: SimpleNamespace, place: Place) -> None:
    (killed.directory / "report.html").unlink()
    again = place.run("run", killed.spec, "--out", killed.directory, plug_in=True)
    assert "nothing was run" in again.stdout
    assert (killed.directory / "report.html").is_file()


def test_another_spec_does_not_touch_the_folder(killed: SimpleNamespace, place: Place) -> None:
    before = modification_times(killed.directory)
    changed = ("--set", "clean_fraction=0.3")
    other = place.run("run", killed.spec, *changed, "--out", killed.directory, plug_in=True)
    assert (other.code, other.stdout) == (2, "")
    assert other.stderr.count("\n") == 1
    assert "clean_fraction: 0.1 -> 0.3" in other.stderr
    assert modification_times(killed.directory) == before
