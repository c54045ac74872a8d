"""A device has its number from the start, and a GPU that was given is used or missed, never passed over."""

from __future__ import annotations

import pytest
import torch

from study.run.one_trial import pick_device
from tests.driver import GIB, Driver, driver
from trainables.machine.device import NoGpuError, best_device, given_device, numbered
from trainables.machine.device_meter import CudaMeter, cap_memory, free_bytes, meter_of

__all__ = ["driver"]
CPU = torch.device("cpu")


def test_a_card_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(cards=2).install(monkeypatch)
    assert numbered(torch.device("cuda")) == torch.device("cuda", 1)
    assert numbered(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert numbered(CPU) == CPU


def test_every_way_to_a_device_gives_its_number(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))  # nothing computes on the tests' driver
    for device in (best_device(), given_device([3]), pick_device(None), pick_device("cuda")):
        assert device == torch.device("cuda", 0)


def test_a_shared_card_is_capped_also_where_the_device_came_without_a_number(driver: Driver) -> None:
    meter = meter_of(torch.device("cuda"))
    assert meter is not None
    assert meter.card == "card 0 of the tests"
    cap_memory(meter, 0.25, GIB)
    assert driver.fractions == {0: pytest.approx(0.25 - 1 / 40)}


@pytest.mark.parametrize("device", [torch.device("cuda"), torch.device("cuda", 0)])
def test_every_question_to_the_card_is_answered(driver: Driver, device: torch.device) -> None:
    meter = CudaMeter(device)
    memory = meter.memory()
    assert (memory.total, memory.used, memory.reserved) == (40 * GIB, 6 * GIB, 5 * GIB)
    meter.limit(1)
    meter.release()
    assert free_bytes(device) == 37 * GIB  # with what the allocator holds and gave to no tensor
    assert driver.fractions == {0: 1.0}


def test_what_is_free_ends_at_the_process_s_own_limit(driver: Driver) -> None:
    try:
        CudaMeter(torch.device("cuda")).limit(0.25)
        assert free_bytes(torch.device("cuda")) == 8 * GIB  # a quarter of 40, less the 2 that tensors have
        driver.free, driver.reserved = 1 * GIB, 2 * GIB
        assert free_bytes(torch.device("cuda")) == 1 * GIB
    finally:
        CudaMeter(torch.device("cuda")).limit(1.0)


def test_a_cpu_has_no_count_of_free_bytes() -> None:
    assert free_bytes(CPU) is None


def test_a_process_without_a_gpu_computes_on_the_cpu_whatever_torch_finds(driver: Driver) -> None:
    assert given_device([]) == CPU


@pytest.mark.parametrize(
    ("built_for", "why"),
    [(None, "is built without CUDA"), ("13.0", "finds none (it is built for 13.0: is the driver too old?)")],
)
def test_a_gpu_that_was_given_and_is_not_found_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, why: str
) -> None:
    Driver(cards=0).install(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(NoGpuError) as caught:
        given_device([0, 2])
    assert str(caught.value) == (
        f"this process was given GPU 0, 2, but its torch {torch.__version__} {why}; install a torch that finds it, or "
        "set resources.gpus_per_trial: 0"
    )
