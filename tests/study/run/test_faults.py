"""What a study stands on fails while it runs: one line, exit code 75; the same command goes on once it is repaired."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from study.record.ledger import Ledger
from study.record.stopped import TRY_LATER, StudyStoppedError, Trouble, stopping
from tests.mounts import own_mounts
from tests.study.processes import AGENTS, Finished, Place, new_place, on_one_core, optuna_trials, rows_of, wait_for
from trainables.storage.store import Store

pytestmark = pytest.mark.timeout(1800)  # whole studies, several times

EXPECTED = ["badnets/none/baseline"] + [f"badnets/super_ft/{number:04d}" for number in range(8)]
ROW = {"trial": "badnets/super_ft/0000", "attack": "badnets", "seed": 0, "status": "ok"}


# -- the pieces: cheap, by default ----------------------------------------------------------------------------------


def test_the_first_failure_is_the_one_that_is_told() -> None:
    trouble = Trouble("the study in runs/a")
    trouble.check()

    @trouble.noticing
    def append() -> str:
        raise OSError(28, os.strerror(28), "trials.jsonl")

    assert append() is None
    trouble.report("what follows from it")
    with pytest.raises(StudyStoppedError) as caught:
        trouble.check("stopped after 3 of 9 trials: ")
    assert str(caught.value) == "stopped after 3 of 9 trials: the study in runs/a: No space left on device"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), StorageInternalError("server is\ngone")])
def test_a_failing_folder_or_database_stops_a_study_in_one_line(error: Exception) -> None:
    with (
        pytest.raises(StudyStoppedError, match=r"the study in x: (Permission denied|server is gone)$"),
        stopping("the study in x"),
    ):
        raise error


def test_what_a_program_does_wrong_is_no_trouble() -> None:
    trouble = Trouble("x")

    @trouble.noticing
    def wrong() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        wrong()
    assert trouble.cause is None


def test_a_row_that_does_not_fit_leaves_a_whole_ledger(tmp_path: Path) -> None:
    """The file may not grow beyond two and a half rows: the kernel writes the half and no more."""
    program = (
        "import json, resource, sys\n"
        "from study.record.ledger import Ledger\n"
        "row = json.loads(sys.argv[2])\n"
        "size = len(json.dumps(row)) + 1\n"
        "ledger = Ledger(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, size * 5 // 2))\n"
        "try:\n"
        "    for seed in range(3):\n"
        "        ledger.append({**row, 'seed': seed})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "trials.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", program, str(path), json.dumps(ROW)], capture_output=True, text=True, timeout=120
    )
    assert "free some disk space" in ran.stdout, ran.stderr
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]
    with Ledger(path) as ledger:
        assert ledger.damaged == []
        ledger.append({**ROW, "seed": 2})


def test_an_entry_that_does_not_fit_leaves_a_whole_journal(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from study.record.optuna_storage import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    for number in range(20):\n"
        "        journal.append_logs([{'number': number, 'text': 'x' * 100}])\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "optuna.journal"
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
    assert "free some disk space" in ran.stdout, ran.stderr
    numbers = [json.loads(line)["number"] for line in path.read_text().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert 5 < len(numbers) < 10
    assert path.read_bytes().endswith(b"\n")


def test_a_ledger_that_was_removed_takes_no_row_that_would_be_lost(tmp_path: Path) -> None:
    with Ledger(tmp_path / "trials.jsonl") as ledger:
        ledger.append(ROW)
        (tmp_path / "trials.jsonl").unlink()
        with pytest.raises(FileNotFoundError, match="the ledger was removed"):
            ledger.append({**ROW, "seed": 1})
        assert len(ledger) == 1


# -- whole studies: real processes ----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("faults"), on_one_core()) as place:
        yield place


def spec_of(place: Place, name: str, longest: int = 500) -> Path:
    """Of nine trials; the search chooses up to ``longest`` iterations."""
    search = {"trials": 8, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, longest]}}}
    return place.spec(name, search=search)


def assert_stopped(ended: Finished, *named: str) -> None:
    assert ended.code == TRY_LATER, ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("superft: ")
    assert last.endswith("; the same command goes on once that is repaired")
    for text in named:
        assert text in last


def assert_whole(directory: Path, before: list[dict[str, object]], store: Path) -> None:
    """The requested trials, none twice, none missing, those measured before as they were; every victim valid."""
    rows = rows_of(directory)
    assert sorted(row["trial"] for row in rows) == EXPECTED
    assert {row["status"] for row in rows} <= {"ok", "diverged"}
    assert rows[: len(before)] == before
    with tempfile.TemporaryDirectory() as copy:  # out of a namespace, whose paths mean something else here
        shutil.copy(directory / "optuna.journal", copy)
        trials = optuna_trials(Path(copy))
        asked = [trial.state for trial in trials if "id" in trial.user_attrs]
        assert asked == [TrialState.COMPLETE] * 8
        # A driver that stops in the middle of asking leaves a trial that nothing was run for.
        assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    victims = [path.name for path in store.iterdir() if path.is_dir() and path.name != "derived"]
    assert len(victims) == 2
    assert all(Store(store).load(name) is not None for name in victims)


@pytest.mark.cluster
def test_a_study_whose_disk_is_full_goes_on_when_there_is_space(place: Place) -> None:
    with own_mounts() as mounts:
        place.inside = (*place.inside, *mounts.inside)
        outside = place.folder / "disk"
        outside.mkdir()
        mounts.mount(outside, "28k")
        directory = mounts.seen(outside / "study")
        command = ("run", spec_of(place, "full"), "--out", outside / "study")
        first = place.run(*command, timeout=400)
        assert_stopped(first, "stopped after ", " of 9 trials: ", str(outside / "study"), "space")
        before = rows_of(directory)
        assert 1 <= len(before) < 9
        second = place.run(*command, timeout=400)  # nothing was repaired
        assert_stopped(second, "space")
        before = rows_of(directory)
        assert len(before) < 9
        mounts.mount(outside, "64m", again=True)
        third = place.run(*command, timeout=400)
        assert third.code == 0, third.stderr
        assert_whole(directory, before, place.store)
        place.wait_until_alone()
        assert place.left_over() == []


@pytest.mark.cluster
def test_a_study_whose_store_is_full_goes_on_when_there_is_space(place: Place) -> None:
    with own_mounts() as mounts:
        place.inside = (*place.inside, *mounts.inside)
        place.store.mkdir()
        mounts.mount(place.store, "100k")
        directory = place.folder / "runs" / "store"
        command = ("run", spec_of(place, "store"), "--out", directory)
        first = place.run(*command, timeout=400)
        assert_stopped(first, f"store {place.store} cannot be written", "No space left on device")
        assert rows_of(directory) == [], "no trial is failed for it"
        mounts.mount(place.store, "64m", again=True)
        second = place.run(*command, timeout=400)
        assert second.code == 0, second.stderr
        assert_whole(directory, [], mounts.seen(place.store))


@pytest.fixture
def gone(place: Place) -> SimpleNamespace:
    """The store disappears among the trials, and with it the actors that had loaded their victims; then it is back."""
    directory, away = place.folder / "runs" / "gone", place.folder / "away"
    command = ("run", spec_of(place, "gone", longest=2000), "--out", directory)
    first = place.start(*command)
    wait_for(lambda: len(rows_of(directory)) >= 2, 300, first.stderr.read_text)
    place.store.rename(away)
    for number in actors(place):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    ended = first.end(400)
    place.wait_until_alone()
    before = rows_of(directory)
    made_anew = place.store.exists()
    away.rename(place.store)
    again = place.run(*command, timeout=400)
    return SimpleNamespace(directory=directory, ended=ended, before=before, made_anew=made_anew, again=again)


def actors(place: Place) -> list[int]:
    """All of Ray's workers: one that lives and holds its victim in memory would rightly end the study alone."""
    found = []
    for number in place.processes():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{number}/cmdline").read_text().strip("\0 ")
            if name.startswith("ray::") and name not in AGENTS:
                found.append(number)
    assert found, place.names()
    return found


@pytest.mark.cluster
def test_a_study_whose_store_disappears_goes_on_when_it_is_back(gone: SimpleNamespace, place: Place) -> None:
    assert_stopped(gone.ended, "stopped after ", " of 9 trials: ", f"store {place.store} holds victim badnets-")
    assert not gone.made_anew, "no victim is trained into an empty mount point"
    assert {row["status"] for row in gone.before} <= {"ok", "diverged"}
    assert len(gone.before) < 9
    assert gone.again.code == 0, gone.again.stderr
    assert "trained in" not in gone.again.stderr
    assert_whole(gone.directory, gone.before, place.store)
    assert place.left_over() == []
