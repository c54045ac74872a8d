"""How many cores this process may use: by its affinity and by the quotas of its control groups, not by the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainables.machine.control_groups import OWN, groups


@dataclass(frozen=True)
class Cores:
    """Cores, and what takes them away.

    Args:
        machine: of the machine.
        affinity: that this process may run on.
        quota: of processor time, in cores; None: it has no quota.
    """

    machine: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Cores for this process, at least 1. Of a quota of 2.5 cores two are counted, as Ray does."""
        return max(1, int(min(self.affinity, self.affinity if self.quota is None else self.quota)))


def find_cores(process: Path = OWN) -> Cores:
    """The cores of this machine and this process.

    Args:
        process: the folder of this process in ``/proc``; tests pass their own.
    """
    machine = os.cpu_count() or 1
    # macOS has neither an affinity nor a quota.
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return Cores(machine, affinity, min(_quotas(process), default=None))


def usable_cores(process: Path = OWN) -> int:
    """Cores for this process, at least 1: all of them, less what affinity and CPU quotas (cgroup v1, v2) take away.

    `taskset`, Slurm and cpusets set the affinity; containers and batch systems set quotas. `os.cpu_count()` sees
    neither.
    """
    return find_cores(process).usable


def _quotas(process: Path) -> Iterator[float]:
    """Every quota that holds for the process, in cores: its own groups' and those of all groups above them."""
    for group in groups(process, "cpu"):
        quota = _quota(group)
        if quota is not None:
            yield quota


def _quota(group: Path) -> float | None:
    """The quota of one group in cores; None: it has none."""
    try:
        if (group / "cpu.max").exists():  # v2: "400000 100000", or "max 100000"
            quota, period = (group / "cpu.max").read_text().split()
        else:  # v1: -1 is no quota
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
