"""What a search is told of a setting: its values on the search half, from the rows of its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
