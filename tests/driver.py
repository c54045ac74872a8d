"""A CUDA driver of the tests: torch's own Python runs, what it calls in C is replaced. Nothing computes on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

GIB = 2**30


@dataclass
class Driver:
    """One machine with some cards, in a process whose current card is the second where there are two.

    Args:
        cards: how many.
        total, free: bytes of each; what the allocator of this process holds is not free.
        reserved, allocated: bytes that the allocator holds, and gave to tensors.
        fractions: by card, the share of its memory that torch was told to keep to.
    """

    cards: int = 1
    total: int = 40 * GIB
    free: int = 34 * GIB
    reserved: int = 5 * GIB
    allocated: int = 2 * GIB
    fractions: dict[int, float] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def of_a_card(device: object) -> int:
            assert isinstance(device, int), f"the driver was called with {device!r}, not with a card's number"
            assert 0 <= device < self.cards
            return device

        def set_fraction(fraction: float, device: int) -> None:
            self.fractions[of_a_card(device)] = fraction

        def stats(device: int) -> dict[str, object]:
            of_a_card(device)
            return {
                "reserved_bytes": {"all": {"current": self.reserved, "peak": self.reserved}},
                "allocated_bytes": {"all": {"current": self.allocated, "peak": self.allocated}},
            }

        def memory(device: int) -> tuple[int, int]:
            of_a_card(device)
            return self.free, self.total

        calls = {
            "_cuda_getDeviceCount": lambda: self.cards,
            "_cuda_getDevice": lambda: self.cards - 1,
            "_cuda_setMemoryFraction": set_fraction,
            "_cuda_memoryStats": stats,
            "_cuda_emptyCache": lambda: None,
        }
        for name, call in calls.items():
            monkeypatch.setattr(torch._C, name, call, raising=False)
        monkeypatch.setattr(torch.cuda, "_initialized", True)
        monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
        monkeypatch.setattr(torch.cuda, "_cudart", SimpleNamespace(cudaMemGetInfo=memory))
        monkeypatch.setattr(
            torch.cuda,
            "_get_device_properties",
            lambda device: SimpleNamespace(name=f"card {of_a_card(device)} of the tests", major=8, minor=0),
            raising=False,
        )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A driver with one card."""
    made = Driver()
    made.install(monkeypatch)
    return made
