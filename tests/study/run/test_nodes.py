"""Studies on a Ray cluster of several nodes (raylets on this machine): nodes that die and nodes that come late."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.study.processes import PATIENCE, Place, new_place, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

WIDE_ENOUGH = 4  # for the victims of every attack and seed here to hold a backdoor
# A trial that waits for a second one is run on every victim, also where a machine's arithmetic lets no backdoor in.
ON_ALL = {**TINY["victim"], "require_implanted": "run"}
SLOW_ENOUGH = {"super_ft": {"batch_size": 16, "cycles1": 0.1, "cycles2": 0.1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("nodes")) as place:
        yield place


class Nodes:
    """A head without slots and nodes of one CPU each, in processes of the place.

    Each has a loopback address of its own. It is not 127.0.0.1, which Ray would take for the host's outer address.
    """

    def __init__(self, place: Place) -> None:
        from ray.cluster_utils import Cluster

        for key, value in place.environment(plug_in=True).items():
            os.environ[key] = value
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "node_ip_address": "127.0.0.2",
                "include_dashboard": False,
                "temp_dir": str(place.temporary / "ray"),
                "object_store_memory": 100 * 1024**2,
            },
        )
        self.started = 2

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        self.started += 1
        return self.cluster.add_node(
            num_cpus=1, node_ip_address=f"127.0.0.{self.started}", object_store_memory=100 * 1024**2
        )

    def kill(self, node: Any) -> None:
        """Node and workers at once, without a word, as when the power fails."""
        raylet = node.all_processes["raylet"][0].process.pid
        children = [int(number) for number in Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()]
        for number in (raylet, *children):
            with contextlib.suppress(ProcessLookupError):  # a worker that has ended meanwhile
                os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def lost(place: Place) -> Iterator[SimpleNamespace]:
    """A study on two nodes, one of which is killed in the middle; a third joins afterwards."""
    before = dict(os.environ)
    nodes = Nodes(place)
    try:
        first, _ = nodes.add(), nodes.add()
        spec = place.spec("lost", search={"trials": 12, "startup_trials": 2}, defense=SLOW_ENOUGH)
        directory = place.folder / "runs" / "lost"
        running = place.start("run", spec, "--out", directory, "--address", nodes.address)
        wait_for(lambda: len(rows_of(directory)) >= 3, PATIENCE, running.stderr.read_text)
        nodes.kill(first)
        nodes.add()
        ended = running.end(PATIENCE)
        yield SimpleNamespace(ended=ended, rows=rows_of(directory), directory=directory)
    finally:
        nodes.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def test_a_study_outlives_a_node(lost: SimpleNamespace) -> None:
    assert lost.ended.code == 0, lost.ended.stderr
    assert "2 slots" in lost.ended.stderr
    assert [(row["status"], row["error"]) for row in lost.rows] == [("ok", None)] * 13


def test_no_trial_is_lost_with_its_node_or_counted_twice(lost: SimpleNamespace) -> None:
    trials = [row["trial"] for row in lost.rows]
    assert sorted(trials) == sorted(["badnets/none/baseline", *(f"badnets/super_ft/{n:04d}" for n in range(12))])


def test_no_optuna_trial_is_left_running_after_a_node_was_lost(lost: SimpleNamespace) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(lost.directory / "optuna.journal")))
    study = optuna.load_study(study_name="lost/badnets/super_ft", storage=storage)
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}


def test_a_node_that_joins_late_is_used(place: Place) -> None:
    """One slot at the start, two at the end. A trial that began alone ends only once the other node has one, too."""
    before = dict(os.environ)
    nodes = Nodes(place)
    try:
        nodes.add()
        spec = place.spec(
            "late", defenses=[], baselines=["none", "meets"], seeds=[0, 1], search={"trials": 1}, defense={},
            width=WIDE_ENOUGH, victim=ON_ALL,
        )  # fmt: skip
        directory = place.folder / "runs" / "late"
        running = place.start("run", spec, "--out", directory, "--address", nodes.address, plug_in=True)
        begun = place.attempts.with_name(f"{place.attempts.name}.begun")
        wait_for(lambda: begun.exists() and bool(list(begun.iterdir())), PATIENCE, running.stderr.read_text)
        assert "1 slot" in running.stderr.read_text()
        nodes.add()
        ended = running.end(PATIENCE)
        assert ended.code == 0, ended.stderr
        rows = rows_of(directory)
        assert {row["status"] for row in rows} <= {"ok", "backdoor_not_implanted"}
        assert len(rows) == len({(row["trial"], row["seed"]) for row in rows}) == 4
        assert len({row["node"] for row in rows if row["defense"] == "meets"}) == 2
    finally:
        nodes.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
