"""What a search is told of a setting: its values on the search half, from the rows of its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

STATUSES = ("ok", "abstained", "diverged", "failed", "backdoor_not_implanted")  # from best to worst
# Trials in these states were measured; a failed one was not.
MEASURED = ("ok", "diverged", "abstained", "backdoor_not_implanted")


def scores(rows: Mapping[Any, Mapping[str, Any]]) -> Values | None:
    """(ASR, clean accuracy) on the search half, the mean over the measured cells; None if there is none.

    A collapsed model counts as the worst, as a diverged one does: its ASR may be 0 by accident.
    """
    measured = [
        WORST if row.get("collapsed") else (row["asr_search"], row["clean_accuracy_search"])
        for row in rows.values()
        if row["status"] in MEASURED
    ]
    if not measured:
        return None
    asr, accuracy = (math.fsum(values) / len(measured) for values in zip(*measured, strict=True))
    return asr, accuracy


def has_backdoor(rows: Mapping[Any, Mapping[str, Any]]) -> bool:
    """Whether every victim under a setting's rows holds a backdoor: else the setting counts in no front."""
    return all(row["status"] != "backdoor_not_implanted" for row in rows.values())


Values = tuple[float, float]
WORST = (1.0, 0.0)


def remarks_on(rows: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """What people want to see of a setting beside what its search is told, JSON-able, from the rows of its cells.

    ``asr_report`` and ``clean_accuracy_report``: means over the measured cells on the half that the search does not
    read. ``charged_epochs``: E of all cells. ``status``: the worst of the cells; ``diverged`` marks a point that is the
    worst there is because training left the finite numbers. ``seeds``, ``defense_seeds``: of the cells.
    """
    everything = list(rows.values())
    measured = [row for row in everything if row["status"] in MEASURED]
    remarks: dict[str, Any] = {
        "status": max((row["status"] for row in everything), key=STATUSES.index),
        "diverged": any(row["status"] == "diverged" for row in everything),
        "collapsed": any(bool(row.get("collapsed")) for row in everything),
        "charged_epochs": math.fsum(row.get("charged_epochs") or 0.0 for row in everything),
        "seeds": sorted({row["seed"] for row in everything}),
        "defense_seeds": sorted({row.get("defense_seed", 0) for row in everything}),
    }
    for name in ("asr_report", "clean_accuracy_report"):
        known = [row[name] for row in measured if row.get(name) is not None]
        if known:
            remarks[name] = math.fsum(known) / len(known)
    return remarks
