"""A trial's process: its card's share, a full card in any words, a GPU that is missing. Ray answers from the tests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from tests.driver import GIB, Driver, driver
from tests.toy import toy_spec
from trainables import tune
from trainables.data.load import DataSource
from trainables.job import Cell, Failed, Job, NoGpu, OutOfMemory
from trainables.machine import device_meter
from trainables.machine.device import NoGpuError
from trainables.plugins.errors import MethodError
from trainables.workbench import Workbench

__all__ = ["driver"]
CELL = Cell(DataSource("toy"), toy_spec("badnets"), "none", 0.3)
JOB = Job("badnets/none/baseline", "badnets/none", "baseline", CELL, {}, True)
FULL = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"


@pytest.fixture(autouse=True)
def _a_ray_of_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gave this process a GPU."""
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [5])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "abcdef012345678"))
    monkeypatch.setattr(device_meter, "_limits", {})


def process(tmp_path: Path, gpus: float = 0.25) -> tune.TrialTrainable:
    """An actor of trials, without Tune's own set-up around it."""
    made = tune.TrialTrainable.__new__(tune.TrialTrainable)
    threads = torch.get_num_threads()
    made.setup({"job": JOB, "gpus": gpus}, store=str(tmp_path), outside_bytes=GIB)
    torch.set_num_threads(threads)
    return made


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Everything that a process does for a cell ends with ``error``."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    for name in ("run", "victim", "victim_name"):
        monkeypatch.setattr(Workbench, name, fail if name != "victim_name" else lambda *_: "no-such-victim")
    monkeypatch.setattr(tune, "run_trial", fail)


def test_a_trial_that_shares_a_card_is_kept_within_its_share(driver: Driver, tmp_path: Path) -> None:
    trial = process(tmp_path)
    assert trial.bench.device == torch.device("cuda", 0)
    assert driver.fractions == {0: pytest.approx(0.25 - 1 / 40)}


def test_a_victim_that_shares_a_card_is_kept_within_its_share(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, RuntimeError(FULL))
    with pytest.raises(RuntimeError, match=FULL):  # as it is: the driver gives it the next share
        tune.train_victim(CELL, str(tmp_path), 1, 0.5)
    assert driver.fractions == {0: pytest.approx(0.5 - 0.5 / 40)}


@pytest.mark.parametrize(
    "text", [FULL, "CUDA error: out of memory", "GET was unable to find an engine to execute this computation"]
)
def test_a_full_card_is_reported_as_one_whatever_its_words(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    raising(monkeypatch, RuntimeError(text))
    report = process(tmp_path).step()["report"]
    assert report == OutOfMemory(text)


def test_an_error_of_a_method_is_no_full_card(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError("shapes cannot be multiplied"))
    assert isinstance(process(tmp_path).step()["report"], Failed)
    with pytest.raises(MethodError, match="shapes cannot be multiplied"):
        tune.train_victim(CELL, str(tmp_path), 1, 0.5)


def test_a_measurement_on_a_full_card_says_so(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, RuntimeError(FULL))
    victim = SimpleNamespace(attacker_indices=torch.arange(7))
    monkeypatch.setattr(Workbench, "victim", lambda *_: victim)
    monkeypatch.setattr(Workbench, "dataset", lambda *_: None)
    monkeypatch.setattr(device_meter.CudaMeter, "is_busy", lambda _: True)
    found = tune.measure_trial(CELL, {}, str(tmp_path), 1, 60.0)
    assert (found["error"], found["card"], found["train_size"]) == (FULL, "card 0 of the tests", 7)
    raising(monkeypatch, RuntimeError("shapes cannot be multiplied"))
    monkeypatch.setattr(Workbench, "victim", lambda *_: victim)
    with pytest.raises(RuntimeError, match="shapes"):
        tune.measure_trial(CELL, {}, str(tmp_path), 1, 60.0)


def test_a_gpu_that_torch_does_not_find_is_told_with_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(cards=0).install(monkeypatch)
    report = process(tmp_path).step()["report"]
    assert isinstance(report, NoGpu)
    assert report.cause.startswith("node abcdef012345: this process was given GPU 5, but its torch ")
    for task in (
        lambda: tune.train_victim(CELL, str(tmp_path), 1, 0.5),
        lambda: tune.measure_trial(CELL, {}, str(tmp_path), 1, 60.0),
    ):
        with pytest.raises(NoGpuError, match="node abcdef012345: this process was given GPU 5"):
            task()


def test_a_process_without_a_gpu_of_ray_s_runs_on_the_cpu(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    assert process(tmp_path, 0.0).bench.device == torch.device("cpu")
    assert driver.fractions == {}
