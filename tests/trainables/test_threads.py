"""What is promised of threads: equal threads, equal bits, whatever the process, its cores and its own threads."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_dataset, toy_spec
from trainables import workbench
from trainables.columns import CIRCUMSTANCES
from trainables.data.images import Dataset
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.machine.threads import on_threads
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.trial import run_trial
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"iterations": 6, "batch_size": 16}
BRIEF = TrainingRecipe(epochs=1, batch_size=32, lr=0.05)

# Trains a victim and repairs it on argv[2] threads, in a store of its own; prints digests of both models and the row.
PROGRAM = """
import hashlib, json, os, sys
from pathlib import Path
if sys.argv[3] == "one core" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
from tests.toy import toy_dataset, toy_spec
from trainables import trial, workbench
from trainables.data import load
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe

def digest(model):
    state = model.state_dict()
    return hashlib.sha256(b"".join(state[name].contiguous().numpy().tobytes() for name in sorted(state))).hexdigest()

load.load_dataset = lambda name, **settings: toy_dataset()
evaluate, repaired = trial.evaluate, []
def noted(model, *arguments, **settings):
    repaired.append(digest(model))
    return evaluate(model, *arguments, **settings)
trial.evaluate = noted
own = torch.get_num_threads()
bench = workbench.Workbench(Store(Path(sys.argv[1])), torch.device("cpu"), threads=int(sys.argv[2]))
brief = TrainingRecipe(epochs=1, batch_size=32, lr=0.05)
cell = Cell(DataSource("toy"), toy_spec("badnets", recipe=brief), "super_ft", 0.3)
row = bench.run(cell, {"iterations": 6, "batch_size": 16}).row()
print(json.dumps([own == torch.get_num_threads(), digest(bench.victim(cell).model), repaired, row]))
"""


def told(folder: Path, threads: int, own: str, cores: str = "all cores") -> list[Any]:
    """What PROGRAM prints in a process that itself computes on ``own`` threads."""
    command = [sys.executable, "-c", PROGRAM, str(folder), str(threads), cores]
    # Threads that wait for each other on one core let each other work.
    environment = {**os.environ, "OMP_NUM_THREADS": own, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def results(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CIRCUMSTANCES}


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_threads_give_equal_bits_in_every_process(tmp_path: Path, threads: int) -> None:
    one = told(tmp_path / "a", threads, own="1")
    other = told(tmp_path / "b", threads, own="3", cores="one core")
    assert one[0], "the process has its own number of threads back"
    assert other[0]
    assert one[1:3] == other[1:3]
    assert results(one[3]) == results(other[3])
    assert one[3]["threads"] == other[3]["threads"] == threads
    assert one[3]["victim_trained_on"] == f"cpu, {threads} thread{'s' * (threads > 1)}, {one[3]['precision']}"
    assert one[3]["flags"] == other[3]["flags"] == []


@pytest.fixture
def toy_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("trainables.data.load.load_dataset", lambda _name, **_settings: toy_dataset())
    workbench._load.cache_clear()
    yield
    workbench._load.cache_clear()


def cell(defense: str) -> Cell:
    return Cell(DataSource("toy"), toy_spec("badnets", recipe=BRIEF), defense, 0.3)


@pytest.mark.usefixtures("toy_data")
def test_a_trial_has_a_studys_threads_in_a_process_that_has_more(tmp_path: Path) -> None:
    first = Workbench(Store(tmp_path / "a"), CPU).run(cell("super_ft"), SHORT).row()
    with on_threads(2):
        second = Workbench(Store(tmp_path / "b"), CPU).run(cell("super_ft"), SHORT).row()
        assert torch.get_num_threads() == 2
    assert first["threads"] == second["threads"] == 1
    assert results(first) == results(second)


@pytest.mark.usefixtures("toy_data")
def test_a_victim_that_was_trained_on_other_threads_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    Workbench(store, CPU, threads=2).victim(cell("none"))
    row = Workbench(store, CPU).run(cell("none"), {}).row()
    precision = row["precision"]
    assert row["victim_trained_on"] == f"cpu, 2 threads, {precision}"
    assert "victim_trained_otherwise" in row["flags"]
    same = Workbench(store, CPU, threads=2).run(cell("none"), {}).row()
    assert "victim_trained_otherwise" not in same["flags"]


def test_a_victim_of_an_older_version_does_not_say_and_is_not_blamed(toy_victim: Victim, toy: Dataset) -> None:
    facts = {key: value for key, value in toy_victim.facts.items() if key != "arithmetic"}
    victim = dataclasses.replace(toy_victim, facts=facts)
    row = run_trial(cell("super_ft"), SHORT, dataset=toy, victim=victim, device=CPU).row()
    assert (row["victim_trained_on"], row["flags"]) == ("", [])


@pytest.mark.usefixtures("toy_data")
def test_work_is_shared_only_among_trials_that_compute_alike(tmp_path: Path) -> None:
    detect = {"epochs": 1, "decision": "smaller"}
    rows = [Workbench(Store(tmp_path), CPU, threads=threads).run(cell("ac"), detect).row() for threads in (1, 2, 1)]
    reused = ["features_reused", "retraining_reused"]
    assert [[flag for flag in row["flags"] if flag in reused] for row in rows] == [[], [], reused]
