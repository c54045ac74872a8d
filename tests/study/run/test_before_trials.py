"""Victims and measurements before the trials: a full card gets the next share, what would stop every trial stops it."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

import trainables.tune  # noqa: F401 - with all of Ray, before its functions are replaced
from study.plan.costs import victim_cost
from study.plan.forecast import Forecast, look_ahead
from study.plan.slots import Node
from study.record.folder import Folder
from study.record.stopped import StudyStoppedError
from study.run.before_trials import make_victims, measure_kinds
from study.run.driver import Driver
from study.run.progress import Progress
from tests.study.tiny import make_driver, tiny_spec
from trainables.data.load import load_dataset
from trainables.job import Cell
from trainables.machine.device import NoGpuError
from trainables.storage.store import StoreUnavailableError

FACTS = {"attack": "badnets", "seed": 0, "notes": [], "found": True, "asr_base": None, "not_implanted": None}
FACTS |= {"clean_accuracy": 0.9, "asr": 1.0, "victim": "badnets-digits"}
FACTS |= {"trained_on": "cpu, 1 thread, float32", "computes_on": "cpu, 1 thread, float32"}
# One of the two that the plan has: BadNets, and the clean model beside it.
FULL = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """GPUs that tasks were started with; each ends as the ``outcome`` for its number says."""
    started = list[float]()

    def remote(num_gpus: float, **_: Any) -> Callable[[Any], Any]:
        def start(*_: Any) -> int:
            started.append(num_gpus)
            return len(started) - 1

        return lambda _task: SimpleNamespace(remote=start)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda jobs, num_returns: (jobs[:1], jobs[1:]))
    return started


def ending(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> None:
    """The first task ends with the first outcome, and so on: facts, or what was raised in the task."""

    def get(number: int) -> Any:
        if isinstance(outcome := outcomes[number], Exception):
            raise RayTaskError("task", "Traceback", outcome)
        return outcome

    monkeypatch.setattr(ray, "get", get)


def study(tmp_path: Path) -> tuple[Driver, Progress, io.StringIO]:
    driver, said = make_driver(tiny_spec(), tmp_path / "trials.jsonl"), io.StringIO()
    return driver, Progress(driver, said), said


def test_a_victim_on_a_full_card_gets_the_next_share_in_whatever_words_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[float]
) -> None:
    driver, progress, said = study(tmp_path)
    ending(monkeypatch, FULL, FACTS, FACTS)
    made = make_victims(driver.plan, progress, 0.25, "store")
    assert made.failed == {}
    assert made.judged[("badnets", 0, "")].victim == "badnets-digits"
    assert gpus == [0.25, 0.25, 0.3333]
    assert " (seed 0): out of memory on 1/4 GPU; once more on 1/3" in said.getvalue()


def test_another_failure_of_a_victim_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[float]
) -> None:
    driver, progress, said = study(tmp_path)
    ending(monkeypatch, RuntimeError("CUDA error: device-side assert triggered"), FACTS)
    (cause,) = make_victims(driver.plan, progress, 0.25, "store").failed.values()
    assert cause == "victim: RuntimeError: CUDA error: device-side assert triggered"
    assert gpus == [0.25, 0.25]
    assert "FAILED" in said.getvalue()


def test_the_controls_begin_and_then_the_dearest_victims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[float]
) -> None:
    begun = list[Cell]()

    def start(cell: Cell, *_: Any) -> int:
        begun.append(cell)
        return len(begun)

    monkeypatch.setattr(ray, "remote", lambda **_: lambda _task: SimpleNamespace(remote=start))
    monkeypatch.setattr(ray, "get", lambda _: FACTS)
    spec = tiny_spec("attacks=[badnets, inputaware, grond, wanet]", "seeds=[0, 7]")
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    cost = partial(victim_cost, data=load_dataset("digits", image_size=8))
    make_victims(driver.plan, Progress(driver, io.StringIO()), 0.25, "store", cost)
    assert {cell.made_from for cell in begun} == {cell.made_from for cell in driver.plan.victims()}
    # Grond trains a surrogate as well, input-aware generators, and WaNet has a control of its own.
    assert [cell.attack for cell in begun[:4]] == ["clean", "clean", "clean_wanet", "clean_wanet"]
    assert [cell.attack for cell in begun[4::2]] == ["grond", "inputaware", "badnets", "wanet"]
    costs = [cost(cell) for cell in begun[4:]]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 2 * costs[-1]


def ahead_of(driver: Driver, folder: Path) -> Forecast:
    digits = load_dataset("digits", image_size=8)
    return look_ahead(driver.plan, digits, folder, [Node("a", 8.0, 1, "A100")], driver.remaining())


@pytest.mark.parametrize(
    "error",
    [NoGpuError("node a: this process was given GPU 0, but"), StoreUnavailableError("the store does not answer")],
)
def test_what_would_stop_every_trial_stops_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[float], error: Exception
) -> None:
    driver, progress, _ = study(tmp_path)
    ending(monkeypatch, error, error, error)
    with pytest.raises(StudyStoppedError, match=str(error)):
        make_victims(driver.plan, progress, 0.25, "store")
    with pytest.raises(StudyStoppedError, match=str(error)):
        measure_kinds(ahead_of(driver, tmp_path), progress, "store", Folder(tmp_path), {})
    assert gpus[:3] == [0.25, 0.25, 1]
