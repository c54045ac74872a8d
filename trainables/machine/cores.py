"""How many cores this process may use: by its affinity and by the quotas of its control groups, not by the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(process: Path = Path("/proc/self")) -> int:
    """Cores for this process, at least 1: all of them, less what affinity and CPU quotas (cgroup v1, v2) take away.

    `taskset`, Slurm and cpusets set the affinity; containers and batch systems set quotas. Of a quota of 2.5 cores
    two are counted, as Ray does. `os.cpu_count()` sees neither.

    Args:
        process: the folder of this process in ``/proc``; tests pass their own.
    """
    # macOS has neither an affinity nor a quota.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([float(cores), *_quotas(process)])))


def _quotas(process: Path) -> Iterator[float]:
    """Every quota that holds for the process, in cores: its own groups' and those of all groups above them."""
    for mount, folder in _groups(process):
        for group in (folder, *folder.parents):
            quota = _quota(group)
            if quota is not None:
                yield quota
            if group == mount:
                break


def _groups(process: Path) -> Iterator[tuple[Path, Path]]:
    """Where control groups that may hold a CPU quota are mounted, and the folder of the process's own group there."""
    try:
        own = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    paths = {controller: path for _, controllers, path in own for controller in controllers.split(",")}
    for line in mounts:
        # "31 23 0:28 ROOT MOUNT options ... - TYPE source options": ROOT is what of the tree is mounted here.
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, options = after.split()[0], after.split()[-1]
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and "cpu" in options.split(","):
            path = paths.get("cpu")
        else:
            path = None
        if path is not None:
            yield Path(mount), Path(mount) / _below(path, root)


def _below(path: str, root: str) -> Path:
    """A group's path seen from ``root``. A container may see a group outside of what it mounts: then the top stands."""
    try:
        inside = Path(path).relative_to(root)
    except ValueError:
        return Path()
    return Path() if ".." in inside.parts else inside


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
