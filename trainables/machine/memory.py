"""How much memory there is: of the machine, and what control groups allow of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trainables.machine.control_groups import OWN, groups

MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class HostMemory:
    """In bytes.

    Args:
        machine: of the machine.
        available: of that, what programs can still take; None where the system does not say.
        limit: what this process and its siblings may take together by their control groups; None: no limit.
    """

    machine: int
    available: int | None
    limit: int | None

    @property
    def usable(self) -> int:
        """Of the machine, less what the limit takes away."""
        return self.machine if self.limit is None else min(self.machine, self.limit)


def find_memory(process: Path = OWN, meminfo: Path = MEMINFO) -> HostMemory:
    """The memory of this machine and this process (on any Unix; limits and what is available on Linux alone).

    Args:
        process: the folder of this process in ``/proc``, and
        meminfo: the file there about memory; tests pass their own.
    """
    try:
        lines = [line.split() for line in meminfo.read_text().splitlines()]
        sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    except OSError:
        sizes = {}
    machine = sizes.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for group in groups(process, "memory") if (limit := _limit(group)) is not None and limit < machine]
    return HostMemory(machine, sizes.get("MemAvailable"), min(limits, default=None))


def _limit(group: Path) -> int | None:
    """The limit of one group; None: it has none. (In version 1 no limit is a very large number.)"""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except OSError:
            continue
        return None if text in ("max", "-1") else int(text)
    return None
