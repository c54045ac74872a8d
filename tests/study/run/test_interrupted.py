"""A study with real processes and real Ray that is stopped by a signal: it says so, and goes on where it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from tests.study.processes import GATED, PATIENCE, Place, new_place, on_one_core, optuna_states, rows_of, wait_for

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("engine"), on_one_core()) as made:
        yield made


@pytest.fixture(scope="module")
def interrupted(place: Place) -> SimpleNamespace:
    """A study stopped by SIGTERM as its victims are trained, by Ctrl-C among its trials, then left to its end.

    Most of its trials wait for a gate that is opened before the last time: it cannot have ended before a signal.
    """
    search = {"trials": 4, "startup_trials": 2, "ranges": {"gated": {"iterations": [20, 500]}}}
    spec = place.spec("stopped", **GATED, search=search)
    directory = place.folder / "runs" / "stopped"
    command = ("run", spec, "--out", directory)
    first = place.start(*command, plug_in=True)
    first.said("trials on", PATIENCE)
    first.process.send_signal(signal.SIGTERM)
    terminated = first.end(PATIENCE)
    place.wait_until_alone()
    left, early = [place.left_over()], rows_of(directory)
    second = place.start(*command, plug_in=True)
    second.said("trials on", PATIENCE)
    wait_for(lambda: len(rows_of(directory)) >= 1, PATIENCE, lambda: second.stderr.read_text())
    rival = place.run(*command, plug_in=True)
    second.signal_group(signal.SIGINT)
    stopped_at = time.monotonic()
    stopped = second.end(PATIENCE)
    seconds = time.monotonic() - stopped_at
    place.wait_until_alone()
    left.append(place.left_over())
    between, states = rows_of(directory), optuna_states(directory)
    shown = place.run("show", directory, plug_in=True)
    place.open_gate()
    third = place.run(*command, plug_in=True, timeout=PATIENCE)
    place.wait_until_alone()
    left.append(place.left_over())
    return SimpleNamespace(
        directory=directory, early=early, terminated=terminated, stopped=stopped, seconds=seconds, rival=rival,
        between=between, states=states, shown=shown, third=third, left=left,
    )  # fmt: skip


def test_sigterm_stops_in_order_and_says_how_to_continue(interrupted: SimpleNamespace) -> None:
    assert interrupted.terminated.code == 130
    assert interrupted.terminated.stderr.splitlines()[-1] == (
        f"stopped after {len(interrupted.early)} of 5 trials; the same command continues the study"
    )
    assert "Traceback" not in interrupted.terminated.stderr


def test_ctrl_c_stops_in_order_and_says_how_to_continue(interrupted: SimpleNamespace) -> None:
    assert interrupted.stopped.code == 130
    done = len(interrupted.between)
    assert interrupted.stopped.stderr.splitlines()[-1] == (
        f"stopped after {done} of 5 trials; the same command continues the study"
    )
    assert "Traceback" not in interrupted.stopped.stderr
    assert 1 <= done < 5
    assert interrupted.seconds < 200


def test_an_interrupted_study_is_continued_to_its_end(interrupted: SimpleNamespace) -> None:
    assert interrupted.third.code == 0, interrupted.third.stderr
    rows = rows_of(interrupted.directory)
    assert rows[: len(interrupted.between)] == interrupted.between
    expected = [f"badnets/gated/{number:04d}" for number in range(4)] + ["badnets/none/baseline"]
    assert sorted(row["trial"] for row in rows) == expected
    assert TrialState.RUNNING not in optuna_states(interrupted.directory)
    assert optuna_states(interrupted.directory).count(TrialState.COMPLETE) == 4


def test_interruptions_leave_no_process_and_no_folder(interrupted: SimpleNamespace, place: Place) -> None:
    assert interrupted.left == [[], [], []]
    assert place.processes() == []


def test_a_second_driver_of_the_same_folder_is_refused(interrupted: SimpleNamespace) -> None:
    assert interrupted.rival.code == 2
    assert interrupted.rival.stderr.count("\n") == 1
    assert "another process runs the study in" in interrupted.rival.stderr


def test_show_tells_how_far_an_unfinished_study_is(interrupted: SimpleNamespace) -> None:
    assert interrupted.shown.code == 0, interrupted.shown.stderr
    assert f"{len(interrupted.between)} of 5 trials done" in interrupted.shown.stdout
