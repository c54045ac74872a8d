"""What of a ledger goes to a tracking tool: for every row a step of its search, and a step of the whole study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from study.plan.jobs import Plan
from study.record.ledger import row_key
from study.record.words import finished_at
from study.results.pareto import RunningFront
from study.results.scores import STATUSES, Victim, front_point, without_backdoor

STUDY = "study"
MEASURES = ("asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report", "wall_seconds")


@dataclass(frozen=True)
class Point:
    """Values of one group at one step.

    ``group``: a search (``badnets/super_ft``), a baseline (``badnets/ft/baseline``) or ``study``. ``step``: counts the
    group's rows from 1. ``seconds``: since the epoch; the same whenever the row is sent. ``values``: rates in [0, 1],
    costs in E, ``status`` as its place in `scores.STATUSES` (0 is ok).
    """

    group: str
    step: int
    seconds: float
    values: Mapping[str, float]


class Points:
    """Turns rows into points; give it all rows of the ledger, in order, whether or not their points are wanted.


    Args:
        plan: gives the study's; it is made smaller by victims without a backdoor, before the first row.
    """

    def __init__(self, plan: Callable[[], Plan]) -> None:
        self._plan = plan
        self._fronts: dict[str, RunningFront] = {}
        self._absent = set[Victim]()
        self._rows: dict[str, dict[tuple[str, int, int], Mapping[str, Any]]] = {}
        self._steps: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._epochs = 0.0
        self._seconds = 0.0

    def add(self, row: Mapping[str, Any]) -> list[Point]:
        """The points of the next row."""
        group = row["search"] or row["trial"]
        epochs = row.get("charged_epochs") or 0.0
        values = {name: float(row[name]) for name in MEASURES if row.get(name) is not None}
        values |= {"status": float(STATUSES.index(row["status"])), "charged_epochs": epochs}
        self._absent |= without_backdoor([row])
        if row["search"]:
            values |= self._front(group, row)
        self._statuses[row["status"]] += 1
        self._epochs += epochs
        counts = {name: float(count) for name, count in self._statuses.items()}
        total = {"trials": float(sum(self._statuses.values())), "charged_epochs": self._epochs, **counts}
        self._seconds = finished_at(row) or self._seconds
        return [self._point(group, values), self._point(STUDY, total)]

    def _point(self, group: str, values: Mapping[str, float]) -> Point:
        self._steps[group] += 1
        return Point(group, self._steps[group], self._seconds, values)

    def _front(self, label: str, row: Mapping[str, Any]) -> dict[str, float]:
        """Size and hypervolume of the search's front after this row, on the search half as in the progress line."""
        rows, front = self._rows.setdefault(row["trial"], {}), self._fronts.setdefault(label, RunningFront())
        cells = next((search.cells for search in self._plan().searches if search.label == label), ())
        if (key := row_key(row)[1:]) in {cell.place for cell in cells}:
            rows[key] = row
        if cells and len(rows) == len(cells):
            del self._rows[row["trial"]]
            if (values := front_point([*rows.values()], self._absent)) is not None:
                front.add(*values)
        return {"front_size": float(len(front)), "hypervolume": float(front.hypervolume)}
