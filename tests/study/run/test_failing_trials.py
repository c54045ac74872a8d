"""A study with real processes and real Ray goes on around trials that fail and victims that hold no backdoor."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from study.record.victims import read_victims
from tests.study.processes import Place, new_place, on_one_core, rows_of, wait_for

pytestmark = pytest.mark.timeout(1000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("engine"), on_one_core()) as made:
        yield made


@pytest.fixture(scope="module")
def faulty(place: Place) -> SimpleNamespace:
    """A study in which one trial always raises, one hangs, one loses its process once, and one diverges."""
    spec = place.spec(
        "faulty",
        baselines=["hangs", "raises", "dies_once", "none", "ft"],
        resources={"trial_seconds": 120},
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
    assert row["error"] == "cut after 120 s (resources.trial_seconds)"
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
        assert "superft: FAILED badnets/hangs/baseline: its only trial failed: cut after 120 s" in ended.stderr
    assert "failed" in (faulty.directory / "trials.csv").read_text()


def kinds_of_rows(directory: Path) -> set[tuple[str, str, int]]:
    return {(row["role"], row["attack"], row["seed"]) for row in rows_of(directory)}


def test_a_killed_study_leaves_out_the_same_victims_when_it_is_continued(place: Place) -> None:
    """One of its two victims is trained on such a faint picture that no backdoor takes hold."""
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
    decided = read_victims(directory)
    before = rows_of(directory)
    second = place.run("run", spec, "--out", directory)
    assert second.code == 0, second.stderr
    assert "no backdoor in 1 of 2 victims; its trials are not run:" in second.stdout
    assert "  blended (seed 0): ASR " in second.stdout
    assert "(1 of 2 models)" in second.stderr
    assert read_victims(directory) == decided
    assert rows_of(directory)[: len(before)] == before
    assert kinds_of_rows(directory) == {("baseline", "badnets", 0), ("search", "badnets", 0)}
    assert len(rows_of(directory)) == 5
    third = place.here("run", spec, "--out", directory)
    assert third.code == 0
    assert "nothing was run" in third.stdout
    shown = place.here("show", directory).stdout
    assert "5 of 5 trials done" in shown
    assert "no backdoor in 1 of 2 victims" in shown
    stopped = place.run("run", spec, "--set", "victim.require_implanted=stop", "--out", place.folder / "runs" / "stop")
    assert stopped.code == 3
    assert stopped.stderr.splitlines()[-1].startswith("superft: no backdoor in 1 of 2 victims, so no trial is run")
    assert rows_of(place.folder / "runs" / "stop") == []
