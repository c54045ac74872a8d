"""Looks at memory: of the machine and its limits, and what processes share."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import sys
from pathlib import Path

from study.doctor.finding import GIGABYTE, Finding, Options, gigabytes
from trainables.machine.cores import usable_cores
from trainables.machine.memory import find_memory

SHARED = Path("/dev/shm")
LEAST = 2 * GIGABYTE
A_SLOT = 1 * GIGABYTE  # a process with torch, a small data set and a small model
LEAST_SHARED = 1 * GIGABYTE


def look_at_memory(_: Options) -> Finding:
    """Whether as many trials as there are cores have room."""
    found, cores = find_memory(), usable_cores()
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    capped = None if soft == resource.RLIM_INFINITY else soft
    facts = {**dataclasses.asdict(found), "usable": found.usable, "address_space": capped}
    says = f"{gigabytes(found.machine)}"
    if found.limit is not None:
        says = f"{gigabytes(found.limit)} of {says} by the limit of a control group"
    if found.available is not None:
        says += f"; {gigabytes(found.available)} of the machine's are available"
    if capped is not None and capped < 4 * found.usable:
        return Finding(
            "warn",
            f"{says}; ulimit -v allows {gigabytes(capped)} of addresses",
            "ulimit -v unlimited: torch and Ray map more than they use",
            facts,
        )
    room = found.usable if found.available is None else min(found.usable, found.available)
    if room < LEAST:
        return Finding("fail", says, "end other programs, or give the container or job more memory", facts)
    if room < A_SLOT * cores:
        todo = f"a study runs {cores} trials at once here: fewer take less memory (resources.cpus_per_trial: 2)"
        return Finding("warn", says, todo, facts)
    return Finding("ok", says, facts=facts)


def look_at_shared_memory(_: Options) -> Finding:
    """Whether Ray's objects have room in memory."""
    if not SHARED.is_dir():
        if sys.platform != "linux":
            return Finding("ok", "none on this system")
        return Finding("warn", f"no {SHARED}: Ray keeps objects in files, slowly", f"mount {SHARED}")
    usage = shutil.disk_usage(SHARED)
    facts = {"total": usage.total, "free": usage.free}
    says = f"{gigabytes(usage.free)} free of {gigabytes(usage.total)} in {SHARED}"
    if usage.free < LEAST_SHARED:
        todo = "Ray would use files, slowly: give the container more (docker run --shm-size 8g), or make room"
        return Finding("warn", says, todo, facts)
    return Finding("ok", says, facts=facts)
