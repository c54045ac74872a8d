"""What a study has left to do, from its ledger, for ``plan`` and ``show``.

A run itself opens its searches and decides in `study.run.driver`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any

from study.plan.jobs import Plan
from study.record.columns import to_frame
from study.record.ledger import row_key
from study.results.finished import unfinished_searches


def trials_left(plan: Plan, rows: Iterable[Mapping[str, Any]], ended: Container[str] = ()) -> Counter[str]:
    """Trials without a row, by the label of their search or baseline; those that have none left are not in it.

    A search that has spent its budget, or used up its space, has none left. Of one with a budget that is left, only the
    most that it may have is known here.

    Args:
        plan: of the study.
        rows: of its ledger.
        ended: searches that are known to have ended, see `record.ended`.
    """
    rows = list(rows)
    done = {row_key(row) for row in rows}
    left = Counter(job.label for job in plan.baselines if job.key not in done)
    made = Counter(row.get("search") for row in rows)
    frame = to_frame(rows)
    open_ones = {f"{key[2]}/{key[3]}" for key in unfinished_searches(frame, plan.spec.search.model_dump(), ended)}
    for search in plan.searches:
        wanted = plan.spec.search.trials * len(search.cells)
        if not made[search.label] or search.label in open_ones:
            left[search.label] = max(0, wanted - made[search.label])
        elif made[search.label] % len(search.cells):  # its last setting lacks some of its cells
            left[search.label] = len(search.cells) - made[search.label] % len(search.cells)
    return +left
