"""All looks, in their order, each with the time that it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from study.doctor.card import look_at_capture, look_at_cuda, look_at_mps
from study.doctor.finding import Finding, Options
from study.doctor.places import look_at_data, look_at_disk, look_at_store, look_at_tmpdir
from study.doctor.processor import look_at_bfloat16, look_at_cores
from study.doctor.ray_here import look_at_address, look_at_ray, look_at_token
from study.doctor.room import look_at_memory, look_at_shared_memory
from study.doctor.software import look_at_python, look_at_torch
from study.doctor.speed import look_at_throughput


@dataclass(frozen=True)
class Look:
    """One look at the machine.

    Args:
        take: looks.
        seconds: after which it is given up; torch alone may take a minute to import from a slow disk.
        needs: the look without whose success this one is not taken.
    """

    take: Callable[[Options], Finding]
    seconds: float = 120.0
    needs: str | None = None


LOOKS = {
    "python": Look(look_at_python, 30),
    "torch": Look(look_at_torch),
    "cuda": Look(look_at_cuda, needs="torch"),
    "cores": Look(look_at_cores, 30),
    "bfloat16": Look(look_at_bfloat16, needs="cuda"),
    "ray": Look(look_at_ray),
    "token": Look(look_at_token, 30),
    "address": Look(look_at_address, 60),
    "store": Look(look_at_store, 60, needs="torch"),
    "data": Look(look_at_data, needs="torch"),
    "disk": Look(look_at_disk, 60, needs="torch"),
    "tmpdir": Look(look_at_tmpdir, 30),
    "memory": Look(look_at_memory, 30),
    "shared memory": Look(look_at_shared_memory, 30),
    "capture": Look(look_at_capture, needs="cuda"),
    "mps": Look(look_at_mps, needs="cuda"),
    "throughput": Look(look_at_throughput, needs="cuda"),
}
