"""Each search of a study in a few numbers, from rows alone: for those who look on, also at ledgers of many rows.

The same numbers as the tables of `results.settings` and `results.fronts`, without making tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from study.plan.jobs import Plan, Search
from study.record.ledger import row_key
from study.results.pareto import RunningFront, hypervolume
from study.results.scores import MEASURED, counting, front_point, remarks_on, without_backdoor

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SearchState:
    """How far a search is.

    Args:
        label: of the search, or of its settings on fresh seeds.
        settings: with a result on every cell.
        left: settings to come; of what will be confirmed, the most that it can be.
        front: settings on the front of the search half; None of what is confirmed.
        hypervolume_search, hypervolume_report: of that front on both halves, in [0, 1]; None: there is no setting yet.
        models: on how many models its numbers rest, in words; empty where it is one.
        at_most: whether ``left`` is an upper bound.
    """

    label: str
    settings: int
    left: int
    front: int | None = None
    hypervolume_search: float | None = None
    hypervolume_report: float | None = None
    models: str = ""
    at_most: bool = False


def search_states(plan: Plan, rows: Iterable[Row], left: Mapping[str, int]) -> list[SearchState]:
    """The searches of a plan, in its order, and behind each what it runs on fresh seeds.

    Args:
        plan: of the study.
        rows: of its ledger, in its order.
        left: trials to come by label, see `results.left.trials_left`.
    """
    rows = list(rows)
    absent = without_backdoor(rows)
    of_label: dict[str, list[Row]] = {}
    for row in rows:
        of_label.setdefault(str(row.get("search")), []).append(row)
    confirmed: dict[str, dict[str, int]] = {}
    for label in (search.confirm_label for search in plan.searches if search.fresh):
        counts = confirmed.setdefault(label, {})
        for row in of_label.get(label, ()):
            counts[row["trial"]] = counts.get(row["trial"], 0) + 1
    found = []
    for search in plan.searches:
        rest = -(-left.get(search.label, 0) // len(search.cells))
        found.append(_state(search, of_label.get(search.label, []), absent, rest))
        if search.fresh:
            ready = sum(count >= len(search.fresh) for count in confirmed[search.confirm_label].values())
            rest = -(-left.get(search.confirm_label, 0) // len(search.fresh))
            models = f"{len(search.fresh)} fresh models"
            unknown = bool(left.get(search.label))
            found.append(SearchState(search.confirm_label, ready, rest, models=models, at_most=unknown))
    return found


def _state(search: Search, rows: Iterable[Row], absent: frozenset[Any], left: int) -> SearchState:
    places = {cell.place for cell in search.cells}
    of_setting: dict[str, list[Row]] = {}
    front, models, settings = RunningFront(), "", 0
    for row in rows:
        if row_key(row)[1:] not in places:
            continue
        own = of_setting.setdefault(row["trial"], [])
        own.append(row)
        counted = counting(own, absent)
        if len(own) < len(places) or not counted or any(one["status"] not in MEASURED for one in counted):
            continue
        settings += 1
        remarks = remarks_on(own, absent)
        models = models or str(remarks.get("models", ""))
        if (point := front_point(own, absent)) is not None:
            front.add(*point, (remarks.get("asr_report", 1.0), remarks.get("clean_accuracy_report", 0.0)))
    if not settings:
        return SearchState(search.label, 0, left, 0, models=models)
    return SearchState(
        search.label, settings, left, len(front), front.hypervolume, hypervolume(front.elsewhere), models
    )
