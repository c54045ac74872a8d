"""A study on a node with two cards (of Ray's bookkeeping alone): measured, shared, and one trial's overflow its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.study.processes import ROOT, Place, new_place, rows_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2000)]

MACHINE = ROOT / "trainables" / "machine"
# Stands before the real module: the same, but every process finds a card of 40 GiB, of which a trial takes 5 GiB (or
# what its defense says) and leaves a third of the time idle, however often it was looked at. A limit is kept, for
# defenses to overflow.
FAKE_CARD = f"""
from pathlib import Path

exec(compile(Path({str(MACHINE / "device_meter.py")!r}).read_text(), "device_meter.py", "exec"), globals())

GIB = 2**30
TAKEN, LIMIT = [5 * GIB], [1.0]


class FakeMeter:
    card = "a card of the tests"

    def memory(self):
        return Memory(40 * GIB, TAKEN[0] + GIB, TAKEN[0], TAKEN[0])

    def is_busy(self):
        return True

    def limit(self, share):
        LIMIT[0] = share

    def release(self):
        pass


class Measuring(Measuring):
    def __exit__(self, *error):
        self._end.set()
        self._sampler.join()
        self._looks = [True, True, False] * 200
        super().__exit__(*error)


def meter_of(device):
    return FakeMeter()


def free_bytes(device):
    return None
"""
# Nothing computes on those cards: a process that was given one computes on the CPU, without a word.
FAKE_DEVICE = f"""
from pathlib import Path

exec(compile(Path({str(MACHINE / "device.py")!r}).read_text(), "device.py", "exec"), globals())


def given_device(gpus):
    return torch.device("cpu")
"""

DEFENSES = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from trainables.defenses.base import Defense, NoData, Repair, register
from trainables.machine import device_meter
from trainables.training.loop import Counters


@dataclass(frozen=True)
class Big(Defense):
    """For tests."""

    owns: ClassVar[type[NoData]] = NoData
    share: ClassVar[float] = 0.0

    def plan(self, n_owned, n_validation=0):
        return Counters()

    def repair(self, model, assets, trainer):
        if device_meter.LIMIT[0] < self.share:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return Repair(model)


@register("hungry")
@dataclass(frozen=True)
class Hungry(Big):
    """Takes most of a card, and says so."""

    def repair(self, model, assets, trainer):
        device_meter.TAKEN[0] = 30 * device_meter.GIB
        return Repair(model)


@register("swells")
@dataclass(frozen=True)
class Swells(Big):
    """Takes more than half of a card, but was measured as if it took less."""

    share: ClassVar[float] = 0.6


@register("bursts")
@dataclass(frozen=True)
class Bursts(Big):
    """Finds no card large enough, except alone (when nothing is limited, as in the measurement), once."""

    def repair(self, model, assets, trainer):
        import os, pathlib

        if pathlib.Path(os.environ["SUPERFT_TEST_ATTEMPTS"] + ".burst").exists():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")
        pathlib.Path(os.environ["SUPERFT_TEST_ATTEMPTS"] + ".burst").touch()
        return Repair(model)
'''


def plug_in(place: Place) -> None:
    folder = place.folder / "plugin"
    (folder / "defenses" / "big.py").write_text(DEFENSES)
    (folder / "rooms").mkdir()
    (folder / "rooms" / "device_meter.py").write_text(FAKE_CARD)
    (folder / "rooms" / "device.py").write_text(FAKE_DEVICE)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write(f"import trainables.machine\ntrainables.machine.__path__.insert(0, {str(folder / 'rooms')!r})\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A study run to its end on such a node, then extended by two settings."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    with new_place(tmp_path_factory.mktemp("sharing")) as place:
        plug_in(place)
        os.environ.update(place.environment(plug_in=True))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "num_gpus": 2,
                "node_ip_address": "127.0.0.2",
                "include_dashboard": False,
                "temp_dir": str(place.temporary / "ray"),
                "object_store_memory": 100 * 1024**2,
            },
        )
        try:
            search = {"trials": 8, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, 500]}}}
            spec = place.spec("shared", baselines=["hungry", "swells", "bursts"], search=search)
            directory = place.folder / "runs" / "shared"
            arguments = ("run", spec, "--out", directory, "--address", str(cluster.address))
            first = place.run(*arguments, plug_in=True, timeout=800)
            content = (directory / "measured.json").read_text()
            planned = place.run("plan", spec, "--out", directory, plug_in=True)
            second = place.run(*arguments, "--set", "search.trials=10", plug_in=True, timeout=800)
            yield SimpleNamespace(
                first=first, second=second, planned=planned, rows=rows_of(directory), directory=directory,
                content=content,
            )  # fmt: skip
        finally:
            cluster.shutdown()
            os.environ.clear()
            os.environ.update(before)


def of(shared: SimpleNamespace, defense: str) -> list[dict[str, object]]:
    return [row for row in shared.rows if row["defense"] == defense]


def test_every_trial_of_a_shared_study_is_recorded_once(shared: SimpleNamespace) -> None:
    # The defense that never fits ends as a failed row, and a baseline that came to nothing is told by the exit code.
    assert shared.first.code == 3, shared.first.stderr
    assert shared.second.code == 3, shared.second.stderr
    trials = [row["trial"] for row in shared.rows]
    assert len(set(trials)) == len(trials) == 3 + 10


def test_each_kind_is_measured_before_the_trials_and_gets_its_share(shared: SimpleNamespace) -> None:
    kinds = json.loads(shared.content)
    assert [name.split(",")[0] for name in sorted(kinds)] == ["bursts", "hungry", "super_ft", "swells"]
    assert {item["card"] for item in kinds.values()} == {"a card of the tests"}
    found = {name.split(",")[0]: item["peak_bytes"] // 2**30 for name, item in kinds.items()}
    assert found == {"bursts": 6, "hungry": 31, "super_ft": 6, "swells": 6}
    assert {row["gpus"] for row in of(shared, "super_ft")} == {0.5}, (
        "two that are busy two thirds of the time fill a card"
    )
    assert [row["gpus"] for row in of(shared, "hungry")] == [1.0]


def test_the_plan_is_said_before_the_trials(shared: SimpleNamespace) -> None:
    said = shared.first.stderr
    before, after = said.split("[1/11]")
    assert "11 trials, " in before
    assert "11 trials on 1 node of 4 CPUs and 2 GPUs; how many share a GPU is measured after the victims" in before
    assert "11 trials on 4 slots of 1 CPU and 1/2 GPU (1 node of 4 CPUs and 2 GPUs: 4 slots each)" in before
    assert "or 2 slots of 1 CPU and 1 GPU" in before
    assert "8 pixels, batch 16: 1/2 GPU (a card of the tests: 6.0 of 40.0 GiB, of it 1.0 context; busy" in before
    assert "time:      about" in before
    assert "measured" not in after


def test_a_trial_that_overflows_its_share_runs_again_on_a_larger_one(shared: SimpleNamespace) -> None:
    (row,) = of(shared, "swells")
    assert (row["status"], row["gpus"], row["flags"]) == ("ok", 1.0, ["retried_out_of_memory"])
    assert "swells/baseline: out of memory on 1/2 of a GPU; once more on 1" in shared.first.stderr


def test_a_trial_that_overflows_twice_is_a_failed_row_with_its_cause(shared: SimpleNamespace) -> None:
    (row,) = of(shared, "bursts")
    assert (row["status"], row["gpus"], row["flags"]) == ("failed", 1.0, ["retried_out_of_memory"])
    assert row["error"] == "out of memory on 1 of a GPU, after 1/2: CUDA out of memory. Tried to allocate 80 GiB"


def test_a_continued_study_takes_the_same_shares_without_measuring(shared: SimpleNamespace) -> None:
    assert (shared.directory / "measured.json").read_text() == shared.content
    assert "is measured" not in shared.second.stderr
    assert "time:      about" in shared.second.stderr


def test_the_plan_of_a_begun_study_shows_what_was_measured(shared: SimpleNamespace) -> None:
    assert shared.planned.code == 0, shared.planned.stderr
    assert "measured:  hungry, preact_resnet18 of width 2, 8 pixels: a card of the tests: 31.0" in shared.planned.stdout
