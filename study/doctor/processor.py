"""Looks at cores and bfloat16."""

from __future__ import annotations

import dataclasses

from study.doctor.finding import Finding, Options
from trainables.machine.cores import find_cores


def look_at_cores(_: Options) -> Finding:
    """How many cores studies may use, and what takes the others away."""
    found = find_cores()
    facts = {**dataclasses.asdict(found), "usable": found.usable}
    of = f"{found.usable} of {found.machine}"
    if found.quota is not None and found.quota < 1:
        todo = "give the container or job a whole core or more (docker run --cpus, --cpus-per-task)"
        return Finding("warn", f"{of}, of which a quota leaves {found.quota:.2g}", todo, facts)
    if found.quota is not None and found.quota < found.affinity:
        return Finding("ok", f"{of} by a quota of {found.quota:.3g} cores", facts=facts)
    if found.affinity < found.machine:
        return Finding("ok", f"{of} by affinity", facts=facts)
    return Finding("ok", f"all {found.machine}", facts=facts)


def look_at_bfloat16(_: Options) -> Finding:
    """Whether the device that trials compute on has bfloat16 in hardware."""
    from trainables.machine.device import best_device
    from trainables.machine.provenance import describe_device
    from trainables.training.loop import resolved_precision

    device = best_device()
    name, precision = describe_device(device), resolved_precision(device, "auto")
    facts = {"device": name, "precision": precision}
    if precision == "bfloat16":
        return Finding("ok", f"in hardware ({name})", facts=facts)
    todo = (
        "nothing to mend: trials compute in float32; a processor with AVX512-BF16, or a GPU from Ampere on, is faster"
    )
    return Finding("warn", f"not in hardware ({name})", todo, facts)
