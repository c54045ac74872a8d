"""Studies with real processes and real Ray on this machine: complete, killed, interrupted, failing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState

from study.record.columns import COLUMNS
from study.record.optuna_storage import open_storage
from study.record.temporary import scratch_folder
from study.run.repeat import differences
from tests.study.processes import Place, new_place, rows_of, wait_for
from trainables.columns import CIRCUMSTANCES

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture(scope="module")
def other_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("engine")) as made:
        yield made


def optuna_trials(directory: Path) -> list[FrozenTrial]:
    storage = open_storage("journal", directory)
    return [
        trial
        for name in optuna.study.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials()
    ]


def optuna_states(directory: Path) -> list[TrialState]:
    return [trial.state for trial in optuna_trials(directory)]


def modification_times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != ".lock"}


@pytest.fixture(scope="module")
def killed(place: Place) -> SimpleNamespace:
    """A study killed in the middle, half a line in its ledger and a wrong byte in its victim; then continued."""
    spec = place.spec(
        "killed", search={"trials": 8, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, 500]}}}
    )
    directory = place.folder / "runs" / "killed"
    first = place.start("run", spec, "--out", directory)
    wait_for(lambda: len(rows_of(directory)) >= 3, 180, lambda: first.stderr.read_text())
    first.process.send_signal(signal.SIGKILL)
    ended = first.end()
    place.wait_until_killed()
    before, left = rows_of(directory), place.left_over()
    with (directory / "trials.jsonl").open("a") as ledger:
        ledger.write('{"study": "killed", "trial": "badnets/super_ft/00')
    model = next(place.store.glob("badnets-*/model.safetensors"))
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    second = place.run("run", spec, "--out", directory)
    place.wait_until_alone()
    return SimpleNamespace(
        spec=spec, directory=directory, before=before, first=ended, second=second, left=left, model=model
    )


def test_a_killed_study_is_continued_to_exactly_its_trials(killed: SimpleNamespace) -> None:
    assert killed.first.code == -signal.SIGKILL
    assert 3 <= len(killed.before) < 9
    assert killed.second.code == 0, killed.second.stderr
    rows = rows_of(killed.directory)
    expected = ["badnets/none/baseline"] + [f"badnets/super_ft/{number:04d}" for number in range(8)]
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
    assert [trial for trial, peak, length in rates if (peak, length) == (0.1, 500)] == ["badnets/super_ft/0000"]


def test_a_truncated_line_is_kept_aside_and_named_and_the_study_goes_on(killed: SimpleNamespace) -> None:
    aside = killed.directory / "trials.jsonl.damaged"
    assert aside.read_text().startswith('{"study": "killed", "trial": "badnets/super_ft/00')
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
        if row["defense"] == "super_ft":
            assert row["steps"] == sum(round(0.1 * row["param.iterations"]) for _ in range(2))
            assert row["backward_samples"] == 16 * row["steps"]


def test_a_trial_is_repeated_in_one_process_that_has_more_threads(killed: SimpleNamespace, place: Place) -> None:
    row = next(row for row in rows_of(killed.directory) if row["trial"] == "badnets/super_ft/0003")
    command = [sys.executable, "-m", "study.cli", "trial", "--like", str(killed.directory), row["trial"], "--json"]
    done = subprocess.run(
        [*command, "--store", str(place.folder / "another")],  # its victim is trained anew
        capture_output=True, text=True, timeout=240, check=False, env=place.environment() | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout)
    assert now["threads"] == row["threads"] == 1
    assert now["victim_trained_on"] == row["victim_trained_on"] == "cpu, 1 thread, float32"
    assert {"asr", "clean_accuracy_report", "asr_by_class", "param.lr_max1"} <= set(row) & set(now) - CIRCUMSTANCES
    assert differences(now, row) == {}


def test_the_same_command_on_a_finished_study_does_nothing_but_say_so(killed: SimpleNamespace, place: Place) -> None:
    before = modification_times(killed.directory)
    again = place.run("run", killed.spec, "--out", killed.directory)
    assert again.code == 0, again.stderr
    assert "is finished: 9 trials; nothing was run" in again.stdout
    assert modification_times(killed.directory) == before
    assert place.processes() == []


def test_a_lost_report_is_written_again_without_running_anything(killed: SimpleNamespace, place: Place) -> None:
    (killed.directory / "report.html").unlink()
    again = place.run("run", killed.spec, "--out", killed.directory)
    assert "nothing was run" in again.stdout
    assert (killed.directory / "report.html").is_file()


def test_another_spec_does_not_touch_the_folder(killed: SimpleNamespace, place: Place) -> None:
    before = modification_times(killed.directory)
    other = place.run("run", killed.spec, "--set", "clean_fraction=0.3", "--out", killed.directory)
    assert (other.code, other.stdout) == (2, "")
    assert other.stderr.count("\n") == 1
    assert "clean_fraction: 0.1 -> 0.3" in other.stderr
    assert modification_times(killed.directory) == before


@pytest.fixture(scope="module")
def interrupted(other_place: Place) -> SimpleNamespace:
    """A study stopped by SIGTERM while its victims are trained, by Ctrl-C among its trials, then left to its end."""
    place = other_place
    spec = place.spec(
        "stopped",
        defense={
            "super_ft": {"batch_size": 16}
        },  # long trials: what comes after a signal must not have ended by itself
        search={"trials": 3, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [500, 600]}}},
    )
    directory = place.folder / "runs" / "stopped"
    first = place.start("run", spec, "--out", directory)
    first.said("trials on")
    first.process.send_signal(signal.SIGTERM)
    terminated = first.end(120)
    place.wait_until_alone()
    left = [place.left_over()]
    second = place.start("run", spec, "--out", directory)
    second.said("trials on")
    rival = place.run("run", spec, "--out", directory)
    wait_for(lambda: len(rows_of(directory)) >= 1, 180, lambda: second.stderr.read_text())
    second.signal_group(signal.SIGINT)
    stopped_at = time.monotonic()
    stopped = second.end(120)
    seconds = time.monotonic() - stopped_at
    place.wait_until_alone()
    left.append(place.left_over())
    between, states = rows_of(directory), optuna_states(directory)
    shown = place.run("show", directory)
    third = place.run("run", spec, "--out", directory)
    place.wait_until_alone()
    left.append(place.left_over())
    return SimpleNamespace(
        directory=directory, terminated=terminated, stopped=stopped, seconds=seconds, rival=rival, between=between,
        states=states, shown=shown, third=third, left=left,
    )  # fmt: skip


def test_sigterm_stops_in_order_and_says_how_to_continue(interrupted: SimpleNamespace) -> None:
    assert interrupted.terminated.code == 130
    assert interrupted.terminated.stderr.splitlines()[-1] == (
        "stopped after 0 of 4 trials; the same command continues the study"
    )
    assert "Traceback" not in interrupted.terminated.stderr


def test_ctrl_c_stops_in_order_and_says_how_to_continue(interrupted: SimpleNamespace) -> None:
    assert interrupted.stopped.code == 130
    done = len(interrupted.between)
    assert interrupted.stopped.stderr.splitlines()[-1] == (
        f"stopped after {done} of 4 trials; the same command continues the study"
    )
    assert "Traceback" not in interrupted.stopped.stderr
    assert 1 <= done < 4
    assert interrupted.seconds < 60


def test_an_interrupted_study_is_continued_to_its_end(interrupted: SimpleNamespace) -> None:
    assert interrupted.third.code == 0, interrupted.third.stderr
    rows = rows_of(interrupted.directory)
    assert rows[: len(interrupted.between)] == interrupted.between
    expected = ["badnets/none/baseline"] + [f"badnets/super_ft/{number:04d}" for number in range(3)]
    assert sorted(row["trial"] for row in rows) == expected
    assert TrialState.RUNNING not in optuna_states(interrupted.directory)
    assert optuna_states(interrupted.directory).count(TrialState.COMPLETE) == 3


def test_interruptions_leave_no_process_and_no_folder(interrupted: SimpleNamespace, other_place: Place) -> None:
    assert interrupted.left == [[], [], []]
    assert other_place.processes() == []


def test_a_second_driver_of_the_same_folder_is_refused(interrupted: SimpleNamespace) -> None:
    assert interrupted.rival.code == 2
    assert interrupted.rival.stderr.count("\n") == 1
    assert "another process runs the study in" in interrupted.rival.stderr


def test_show_tells_how_far_an_unfinished_study_is(interrupted: SimpleNamespace) -> None:
    assert interrupted.shown.code == 0, interrupted.shown.stderr
    assert f"{len(interrupted.between)} of 4 trials done" in interrupted.shown.stdout


@pytest.fixture(scope="module")
def faulty(place: Place) -> SimpleNamespace:
    """A study in which one trial always raises, one hangs, one loses its process once, and one diverges."""
    spec = place.spec(
        "faulty",
        baselines=["hangs", "raises", "dies_once", "none", "ft"],
        resources={"trial_seconds": 20},
        defense={
            "super_ft": {"batch_size": 16, "cycles1": 0.1, "cycles2": 0.1},
            "ft": {"lr": 1e6, "steps": 50, "batch_size": 16, "schedule": "constant"},
        },
        search={"trials": 2, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, 500]}}},
    )
    directory = place.folder / "runs" / "faulty"
    ended = place.run("run", spec, "--out", directory, plug_in=True)
    place.wait_until_alone()
    rows = {row["trial"]: row for row in rows_of(directory)}
    again = place.run("run", spec, "--out", directory, plug_in=True)
    return SimpleNamespace(directory=directory, ended=ended, rows=rows, again=again, attempts=place.attempts)


def test_a_trial_that_raises_is_recorded_with_its_cause_and_place_at_once(faulty: SimpleNamespace) -> None:
    assert faulty.ended.code == 3, faulty.ended.stderr
    row = faulty.rows["badnets/raises/baseline"]
    assert row["status"] == "failed"
    assert re.fullmatch(r"RuntimeError: the card is on fire really \(faulty\.py:\d+ in repair\)", row["error"])
    assert row.get("asr") is None
    assert faulty.attempts.read_text() == "x", "it would raise again"


def test_a_hung_trial_is_cut_at_its_time_limit_and_not_tried_again(faulty: SimpleNamespace) -> None:
    row = faulty.rows["badnets/hangs/baseline"]
    assert row["status"] == "failed"
    assert row["error"] == "cut after 20 s (resources.trial_seconds)"
    assert faulty.attempts.with_name("attempts.hung").read_text() == "x"


def test_a_trial_whose_process_died_is_run_again(faulty: SimpleNamespace) -> None:
    assert faulty.attempts.with_name("attempts.died").exists()
    assert faulty.rows["badnets/dies_once/baseline"]["status"] == "ok"


def test_a_diverging_trial_is_a_completed_worst_row(faulty: SimpleNamespace) -> None:
    row = faulty.rows["badnets/ft/baseline"]
    assert row["status"] == "diverged"
    assert (row["asr"], row["asr_search"], row["asr_report"]) == (1.0, 1.0, 1.0)
    assert (row["clean_accuracy"], row["clean_accuracy_search"], row["robust_accuracy"]) == (0.0, 0.0, 0.0)
    assert row["error"]


def test_the_study_goes_on_around_its_failures(faulty: SimpleNamespace) -> None:
    assert len(faulty.rows) == 7
    assert [row["status"] for row in faulty.rows.values()].count("ok") == 4
    assert "FAILED: RuntimeError: the card is on fire really" in faulty.ended.stderr
    assert "Traceback" not in faulty.ended.stderr
    assert "nothing was run" in faulty.again.stdout
    for ended in (faulty.ended, faulty.again):  # a baseline without any result is no success
        assert ended.code == 3
        assert "superft: FAILED badnets/raises/baseline: its only trial failed: RuntimeError: the card" in ended.stderr
        assert "superft: FAILED badnets/hangs/baseline: its only trial failed: cut after 20 s" in ended.stderr
    assert "failed" in (faulty.directory / "trials.csv").read_text()


# -- scratch folders ------------------------------------------------------------------------------------------------


def test_a_scratch_folder_of_the_living_is_left_alone_and_of_the_dead_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "sft-dead").mkdir()
    (tmp_path / "sft-dead" / "file").write_text("x")
    (tmp_path / "sft-dead.lock").touch()
    (tmp_path / "sft-unrelated").mkdir()
    with scratch_folder() as living:
        assert living.is_dir()
        assert not (tmp_path / "sft-dead").exists()
        assert not (tmp_path / "sft-dead.lock").exists()
        with scratch_folder() as other:
            assert living.is_dir()
            assert other != living
        assert living.is_dir()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["sft-unrelated"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "precious").write_text("keep")
    os.symlink(tmp_path / "precious", tmp_path / "sft-x.lock")
    with scratch_folder():
        pass
    assert (tmp_path / "precious").read_text() == "keep"


def kinds_of_rows(directory: Path) -> set[tuple[str, str, int]]:
    return {(row["role"], row["attack"], row["seed"]) for row in rows_of(directory)}


def test_a_killed_study_leaves_out_the_same_victims_when_it_is_continued(place: Place) -> None:
    """One of its two victims is trained so briefly on such a faint picture that no backdoor takes hold."""
    spec = place.spec(
        "left-out",
        attacks=["badnets", "blended"],
        attack={"blended": {"alpha": 0.01}},
        search={"trials": 4, "startup_trials": 2, "per": "all", "ranges": {"super_ft": {"iterations": [20, 500]}}},
    )
    directory = place.folder / "runs" / "left-out"
    first = place.start("run", spec, "--out", directory)
    wait_for(lambda: len(rows_of(directory)) >= 2, 180, lambda: first.stderr.read_text())
    first.process.send_signal(signal.SIGKILL)
    first.end()
    place.wait_until_killed()
    decided = (directory / "victims.json").read_bytes()
    before = rows_of(directory)
    second = place.run("run", spec, "--out", directory)
    assert second.code == 0, second.stderr
    assert "no backdoor in 1 of 2 victims; its trials are not run:" in second.stdout
    assert "  blended (seed 0): ASR " in second.stdout
    assert "(1 of 2 models)" in second.stderr
    assert (directory / "victims.json").read_bytes() == decided
    assert rows_of(directory)[: len(before)] == before
    assert kinds_of_rows(directory) == {("baseline", "badnets", 0), ("search", "badnets", 0)}
    assert len(rows_of(directory)) == 5
    third = place.run("run", spec, "--out", directory)
    assert third.code == 0
    assert "nothing was run" in third.stdout
    shown = place.run("show", directory).stdout
    assert "5 of 5 trials done" in shown
    assert "no backdoor in 1 of 2 victims" in shown
    stopped = place.run("run", spec, "--set", "victim.require_implanted=stop", "--out", place.folder / "runs" / "stop")
    assert stopped.code == 3
    assert stopped.stderr.splitlines()[-1].startswith("superft: no backdoor in 1 of 2 victims, so no trial is run")
    assert rows_of(place.folder / "runs" / "stop") == []
