"""What a setting comes to on the search half, from the rows of its cells; one rule for search, progress and report.

A cell whose victim holds no backdoor has nothing to remove: it counts nowhere. What rests on fewer models than were
meant says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from study.record.columns import CELLS_SAVED, DROPPED_BY
from study.spec.over_attacks import OverAttacks, parse_rule

STATUSES = ("ok", "abstained", "diverged", "failed", "backdoor_not_implanted")  # from best to worst
NOT_IMPLANTED = "backdoor_not_implanted"
# Trials in these states were measured; a failed one was not.
MEASURED = ("ok", "diverged", "abstained")

Row = Mapping[str, Any]
Values = tuple[float, float]
Victim = tuple[str, str, str, int, str]
WORST = (1.0, 0.0)


def victim_of(row: Row) -> Victim:
    """Data set, model, attack, seed and combination of a sweep: in the rows of a study they name a victim."""
    return row["dataset"], row["model"], row["attack"], row["seed"], row.get("combination") or ""


def without_backdoor(rows: Iterable[Row]) -> frozenset[Victim]:
    """Victims without a backdoor, as far as these rows tell.

    In ledgers of earlier versions a trial that abstained or diverged on such a victim says only that; others tell.
    """
    return frozenset(victim_of(row) for row in rows if row["status"] == NOT_IMPLANTED)


def counting(rows: Iterable[Row], absent: Collection[Victim] = ()) -> list[Row]:
    """The rows that count, failed ones included: those on a victim with a backdoor.

    Args:
        absent: victims that are known to hold none, from other rows.
    """
    return [row for row in rows if row["status"] != NOT_IMPLANTED and victim_of(row) not in absent]


def _whole(rows: Iterable[Row], absent: Collection[Victim]) -> list[Row]:
    """The rows that count, where every one of them was measured; else none: over some cells no mean was asked."""
    own = counting(rows, absent)
    return own if all(row["status"] in MEASURED for row in own) else []


def told_of(row: Row) -> Values:
    """(ASR, clean accuracy) of a measured trial as searches are told them; a collapsed model is the worst there is."""
    return WORST if row.get("collapsed") else (row["asr_search"], row["clean_accuracy_search"])


def scores(rows: Iterable[Row], absent: Collection[Victim] = ()) -> Values | None:
    """What a search is told of a setting: (ASR, clean accuracy) over its cells with a backdoor.

    Both are means, or what the study takes of the attacks instead, see `rule_in`. A collapsed model counts as the
    worst (`told_of`), as a diverged one does: its ASR may be 0 by accident. None if a cell failed (a mean over the
    others, which may be the easier ones, is not what was asked), or if no cell has a backdoor.
    """
    if not (own := _whole(rows, absent)):
        return None
    asr, accuracy = zip(*map(told_of, own), strict=True)
    return taken_together(own, asr, high_is_worst=True), taken_together(own, accuracy, high_is_worst=False)


def rule_in(rows: Sequence[Row]) -> OverAttacks:
    """How the study that these rows are of takes attacks together."""
    return parse_rule(rows[0].get("aggregate"))


def taken_together(rows: Sequence[Row], values: Sequence[float], *, high_is_worst: bool) -> float:
    """One number over the cells of a setting, by the rule of its study; ``values``: of the rows."""
    return rule_in(rows).over([row["attack"] for row in rows], values, high_is_worst=high_is_worst)


def front_point(rows: Sequence[Row], absent: Collection[Victim] = ()) -> Values | None:
    """The same, where the setting may be on a front.

    None if a cell that counts failed, if its model collapsed, or if the setting was dropped in a race.
    """
    collapsed = any(row.get("collapsed") for row in counting(rows, absent))
    return None if collapsed or any(row.get(DROPPED_BY) for row in rows) else scores(rows, absent)


def accuracy_drop(rows: Iterable[Row], absent: Collection[Victim] = ()) -> float | None:
    """Clean accuracy that a setting gives up on the search half, a fraction: over what `scores` counts, by its rule.

    None where `scores` is, or a row does not tell the accuracy before (made-up ones).
    """
    drops = []
    for row in (own := _whole(rows, absent)):
        if (before := accuracy_before(row)) is None:
            return None
        drops.append(before - told_of(row)[1])
    return taken_together(own, drops, high_is_worst=True) if drops else None


def accuracy_before(row: Row) -> float | None:
    """Clean accuracy of the victim on the search half, from the whole test set and the report half."""
    full: float | None = row.get("clean_accuracy_before")
    report = row.get("clean_accuracy_before_report")
    n, n_report = row.get("n_clean") or 0, row.get("n_clean_report") or 0
    if full is None or report is None or n <= n_report:
        return full
    return float(min(1.0, max(0.0, (full * n - report * n_report) / (n - n_report))))


def models_in_words(counted: int, meant: int) -> str:
    """``1 of 4 models``, ``4 models``: on how many a pooled number rests; nothing where there is one alone."""
    if meant <= 1:
        return ""
    return f"{meant} models" if counted == meant else f"{counted} of {meant} models"


def _count_victims(rows: Iterable[Row]) -> int:
    return len({victim_of(row) for row in rows})


def remarks_on(rows: Sequence[Row], absent: Collection[Victim] = ()) -> dict[str, Any]:
    """What people want to see of a setting beside what its search is told, JSON-able, from the rows of its cells.

    ``asr_report`` and ``clean_accuracy_report``: over the measured cells with a backdoor as in `scores`, on the half
    that the search does not read. ``charged_epochs``: E of all cells. ``status``: the worst of the cells with a
    backdoor; ``diverged`` marks a point that is the worst there is because training left the finite numbers. ``seeds``,
    ``defense_seeds``: of the cells. ``models``: how many of the models that the setting was meant for count.
    ``accuracy_drop``: see `accuracy_drop`.
    """
    own = counting(rows, absent)
    told = own or rows
    remarks: dict[str, Any] = {
        "status": max((row["status"] for row in told), key=STATUSES.index),
        "diverged": any(row["status"] == "diverged" for row in told),
        "collapsed": any(bool(row.get("collapsed")) for row in told),
        "charged_epochs": math.fsum(row.get("charged_epochs") or 0.0 for row in rows),
        "seeds": sorted({row["seed"] for row in rows}),
        "defense_seeds": sorted({row.get("defense_seed", 0) for row in rows}),
    }
    if (drop := accuracy_drop(rows, absent)) is not None:
        remarks["accuracy_drop"] = drop
    meant = max((row.get("models") or _count_victims(rows) for row in rows), default=0)
    if words := models_in_words(_count_victims(own), meant):
        remarks["models"] = words
    measured = [row for row in own if row["status"] in MEASURED]
    for name in ("asr_report", "clean_accuracy_report"):
        known = [row for row in measured if row.get(name) is not None]
        if known:
            high = name == "asr_report"
            remarks[name] = taken_together(known, [row[name] for row in known], high_is_worst=high)
    return remarks


def remarks_on_dropped(rows: Sequence[Row]) -> dict[str, Any]:
    """The same of a setting that was dropped in a race, from the rows it has: no rate, for none is over all cells."""
    last = next(row for row in rows if row.get(DROPPED_BY))
    return {
        "status": "dropped",
        DROPPED_BY: last[DROPPED_BY],
        CELLS_SAVED: last[CELLS_SAVED],
        "cells_measured": len(rows),
        "charged_epochs": math.fsum(row.get("charged_epochs") or 0.0 for row in rows),
    }
