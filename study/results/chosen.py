"""What a search chose, its front, and the trials that run it again on fresh seeds: the answer of `run` and `show`.

Knee and picks are members of the front, see `fronts.fronts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from study.plan.jobs import CONFIRM, Search
from study.record.columns import PARAM
from study.record.ledger import row_key
from study.results.finished import Place, Standing
from study.results.pareto import non_dominated_indices
from study.results.scores import front_point, without_backdoor
from trainables.job import Job

Row = Mapping[str, Any]


def front_rows(search: Search, rows: Iterable[Row], absent: Collection[Any]) -> list[Row]:
    """One row of each setting on the front of a search, ASR ascending; of equal settings the one that ended first.

    Args:
        search: of the plan.
        rows: of the ledger, in its order.
        absent: victims without a backdoor, see `scores.without_backdoor`.
    """
    places, found = {cell.place for cell in search.cells}, dict[str, dict[Place, Row]]()
    ended: list[tuple[Row, tuple[float, float]]] = []
    for row in rows:
        place = row_key(row)[1:]
        if row.get("search") != search.label or place not in places:
            continue
        own = found.setdefault(row["trial"], {})
        own[place] = row
        if len(own) == len(places) and (point := front_point([*own.values()], absent)) is not None:
            ended.append((row, point))
    if not ended:
        return []
    return [ended[index][0] for index in non_dominated_indices(np.array([point for _, point in ended]))]


def jobs_to_confirm(search: Search, standing: Standing, rows: Sequence[Row]) -> list[Job] | None:
    """The trials of what a search chose on its fresh cells, those with a row included; None while it is not over.

    Args:
        search: of the plan.
        standing: of that search.
        rows: of the study's ledger, in its order.
    """
    if not search.fresh:
        return []
    if not standing.over:
        return None
    chosen = front_rows(search, rows, set(without_backdoor(rows)))
    return [
        Job(
            search.confirm_label,
            search.confirm_id(row["trial"]),
            CONFIRM,
            cell,
            {key.removeprefix(PARAM): value for key, value in row.items() if key.startswith(PARAM)},
            bool(row["published"]),
        )
        for row in chosen
        for cell in search.fresh
    ]


def left_to_confirm(
    search: Search,
    standing: Standing,
    jobs: Sequence[Job] | None,
    is_done: Callable[[Job], bool],
    asked: int | None = None,
) -> int:
    """Trials on fresh seeds still to come; while the search is not over, the most there can be: all of its settings.

    Args:
        search, standing: as for `jobs_to_confirm`, which gave ``jobs``.
        is_done: whether a trial has its row.
        asked: as for `Standing.settings_in_the_end`.
    """
    if jobs is None:
        return standing.settings_in_the_end(asked) * len(search.fresh)
    return sum(not is_done(job) for job in jobs)
