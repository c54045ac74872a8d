"""What is measured of a card is memory with all that is outside torch, and time with work; the cap leaves the rest."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

import pytest
import torch

from trainables.machine.device_meter import CudaMeter, Measuring, Memory, cap_memory, meter_of

GIB = 2**30


class FakeMeter:
    """A card of 40 GiB on which this process holds 5 GiB, has held 6, and 1 GiB is outside of torch."""

    card = "fake"

    def __init__(self, busy: Iterable[bool] = ()) -> None:
        self.busy, self.looks, self.limits = iter(busy), 0, list[float]()
        self.thirty_looks = threading.Event()

    def memory(self) -> Memory:
        return Memory(40 * GIB, 6 * GIB, 5 * GIB, 6 * GIB)

    def is_busy(self) -> bool:
        self.looks += 1
        if self.looks == 30:
            self.thirty_looks.set()
        return next(self.busy)

    def limit(self, share: float) -> None:
        self.limits.append(share)

    def release(self) -> None:
        raise AssertionError("nobody asked for it")


def test_peak_memory_is_what_the_allocator_held_at_most_and_what_is_outside() -> None:
    with Measuring(FakeMeter(itertools.repeat(True))) as measuring:
        pass
    usage = measuring.usage
    assert usage is not None
    assert (usage.card, usage.total_bytes, usage.peak_bytes, usage.outside_bytes) == ("fake", 40 * GIB, 7 * GIB, GIB)


def test_busy_is_the_share_of_looks_that_found_work_after_the_warm_up() -> None:
    meter = FakeMeter(itertools.chain([False] * 10, itertools.cycle([True, False, True, True])))
    with Measuring(meter, every=1e-4, warm_up=1e-3) as measuring:
        assert meter.thirty_looks.wait(60)
    assert measuring.usage is not None
    assert measuring.usage.busy == pytest.approx(0.75, abs=0.05)


def test_a_block_too_short_for_a_look_counts_as_busy() -> None:
    with Measuring(FakeMeter(), every=1000) as measuring:
        pass
    assert measuring.usage is not None
    assert measuring.usage.busy == 1.0


def test_what_goes_wrong_within_is_raised_and_measured() -> None:
    measuring = Measuring(FakeMeter(itertools.repeat(True)))
    with pytest.raises(torch.OutOfMemoryError), measuring:
        raise torch.OutOfMemoryError("full")
    assert measuring.usage is not None


@pytest.mark.parametrize(
    ("gpus", "outside", "limits"),
    [
        (0.25, GIB, [0.25 - 1 / 40]),
        (0.25, 0, [0.25]),
        (0.05, 2 * GIB, [0.025]),  # contexts alone would fill it
        (1.0, GIB, []),
        (2.0, GIB, []),
    ],
)
def test_a_process_is_kept_within_its_share_less_what_is_outside(
    gpus: float, outside: int, limits: list[float]
) -> None:
    meter = FakeMeter()
    cap_memory(meter, gpus, outside)
    assert meter.limits == pytest.approx(limits)


def test_a_cpu_has_no_meter() -> None:
    assert meter_of(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_real_card_is_measured_and_capped() -> None:
    device = torch.device("cuda", 0)
    meter = CudaMeter(device)
    with Measuring(meter, warm_up=0) as measuring:
        kept = torch.zeros(2**28, dtype=torch.uint8, device=device)
        for _ in range(300):
            kept = kept.roll(1)
        torch.cuda.synchronize(device)
    usage = measuring.usage
    assert usage is not None
    assert usage.peak_bytes > 2 * 2**28 + usage.outside_bytes - 1
    assert usage.outside_bytes > 2**26
    assert 0.5 < usage.busy <= 1.0
    del kept
    meter.release()
    try:
        meter.limit(0.05)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(int(0.1 * usage.total_bytes), dtype=torch.uint8, device=device)
    finally:
        meter.limit(1.0)
