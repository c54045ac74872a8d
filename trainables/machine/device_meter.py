"""What a process takes of its GPU, memory and time; and the cap that lets an overflow fail where it was caused."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import torch

from trainables.machine.device import numbered

# Taken by the CUDA context and loaded kernels of a process whose own were not measured: some hundred MB on an A100.
CONTEXT_BYTES = 512 * 2**20
SAMPLE_SECONDS = 0.01
# Kernels are loaded and chosen in the first seconds of a process, once for all of its trials.
WARM_UP_SECONDS = 3.0
# By number of the card: the share that this process's tensors may take, where `CudaMeter.limit` set one. (torch can be
# asked for it only since 2.8.)
_limits: dict[int, float] = {}


@dataclass(frozen=True)
class Memory:
    """Of a card, in bytes.

    Args:
        total: of the card.
        used: of it, by anybody, now.
        reserved: of that, by the allocator of this process.
        peak_reserved: the most that this allocator has held since its last reset.
    """

    total: int
    used: int
    reserved: int
    peak_reserved: int


@dataclass(frozen=True)
class Usage:
    """What a process took of a card that no other trial was on.

    Args:
        card: its name.
        total_bytes: of the card.
        peak_bytes: the most taken of it: what the allocator held at most (what it holds is taken, used or not), and
            what is outside.
        outside_bytes: what is not the allocator's: context, loaded kernels, and what strangers hold on the card.
        busy: share of time, in [0, 1], in which the card had work of this process.
    """

    card: str
    total_bytes: int
    peak_bytes: int
    outside_bytes: int
    busy: float


class DeviceMeter(Protocol):
    """All that is asked of a card."""

    card: str

    def memory(self) -> Memory:
        """What of the card's memory is in use now, in bytes."""
        ...

    def is_busy(self) -> bool:
        """Whether the card has work of this process that is not done yet."""
        ...

    def limit(self, share: float) -> None:
        """Tensors of this process may take this share of the card's memory, in (0, 1]."""
        ...

    def release(self) -> None:
        """Give the card what the allocator holds and does not use."""
        ...


class CudaMeter:
    """A CUDA card as torch sees it.

    Whether the card is busy is asked of the stream, many times: NVML's share of time needs a further package, counts
    other processes on the card, and knows no MIG slice. All of our work is in the default stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = numbered(device)
        self.card = torch.cuda.get_device_name(self.device)

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.device)
        reserved, peak = torch.cuda.memory_reserved(self.device), torch.cuda.max_memory_reserved(self.device)
        return Memory(total, total - free, reserved, peak)

    def is_busy(self) -> bool:
        return not torch.cuda.default_stream(self.device).query()

    def limit(self, share: float) -> None:
        torch.cuda.set_per_process_memory_fraction(float(share), self.device)
        _limits[self.device.index] = share

    def release(self) -> None:
        torch.cuda.empty_cache()


def meter_of(device: torch.device) -> DeviceMeter | None:
    """The meter of a device that trials may share; a CPU has none."""
    return CudaMeter(device) if device.type == "cuda" else None


def free_bytes(device: torch.device) -> int | None:
    """What tensors of this process may still take of a card, in bytes, within its limit; None on a CPU.

    What the allocator holds and does not use is free, though in pieces.
    """
    if device.type != "cuda":
        return None
    device = numbered(device)
    free, total = torch.cuda.mem_get_info(device)
    taken, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    limit = int(_limits.get(device.index, 1.0) * total)
    return max(0, min(free + reserved, limit) - taken)


def cap_memory(meter: DeviceMeter, gpus: float, outside_bytes: int = CONTEXT_BYTES) -> None:
    """Keep this process within its share of the card: a trial that wants more runs out of memory, not its neighbours.

    Args:
        gpus: the share, > 0; from 1 on there is nobody to protect.
        outside_bytes: of the share, what is not the allocator's and does not count against its limit.
    """
    if gpus < 1:
        # On a card so small that contexts fill it, trials still get something to fail with.
        meter.limit(max(gpus / 2, gpus - outside_bytes / meter.memory().total))


class Measuring:
    """Measures this process's use of its card within the block; `usage` holds it afterwards.

    Args:
        meter: of the card.
        every: seconds between looks at whether it is busy.
        warm_up: seconds at the start that do not count for that, at most half of the block.
    """

    def __init__(self, meter: DeviceMeter, every: float = SAMPLE_SECONDS, warm_up: float = WARM_UP_SECONDS) -> None:
        self.meter, self.every, self.warm_up = meter, every, warm_up
        self.usage: Usage | None = None
        self._looks: list[bool] = []
        self._end = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._sampler.join()
        memory = self.meter.memory()
        outside = max(0, memory.used - memory.reserved)
        looks = self._looks[min(round(self.warm_up / self.every), len(self._looks) // 2) :]
        busy = sum(looks) / len(looks) if looks else 1.0
        self.usage = Usage(self.meter.card, memory.total, memory.peak_reserved + outside, outside, busy)

    def _sample(self) -> None:
        while not self._end.wait(self.every):
            self._looks.append(self.meter.is_busy())
