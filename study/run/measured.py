"""The rows of a running study by setting, and how far each of its searches is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.plan.jobs import Plan, Search
from study.record.columns import PARAM
from study.record.ledger import Ledger, row_key
from study.results.finished import Place, Standing
from study.results.scores import Values, front_point, remarks_on, remarks_on_dropped, scores, without_backdoor
from study.search.optuna_search import OptunaSearch
from trainables.job import Job

Row = Mapping[str, Any]


def is_complete(search: Search, rows: Sequence[Row]) -> bool:
    """Whether rows of a setting on the cells of its search are all that there will be."""
    return len(rows) >= len(search.cells)


class Measured:
    """The ledger's rows, at hand by the setting that they are of; `look` before anything else.

    Args:
        ledger: of the study; rows that come later are to be added here as well.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._rows: dict[str, dict[Place, Row]] = {}
        for row in ledger.rows():
            self._rows.setdefault(row["trial"], {})[row_key(row)[1:]] = row
        self.standing: dict[str, Standing] = {}
        self.absent = set[Any]()  # victims without a backdoor, as far as the rows tell

    def look(self, plan: Plan, searches: Sequence[Search], ended: Mapping[str, int]) -> None:
        """All that follows from rows and plan alone.

        Args:
            ended: see `record.ended`.
        """
        self.standing = {one.label: Standing(plan, one, ended.get(one.label)) for one in searches}
        rows = self._ledger.rows()
        self.absent = set(without_backdoor(rows))
        for row in rows:
            if (standing := self.standing.get(str(row.get("search")))) is not None:
                standing.add(row)

    def add(self, job: Job, row: Row, charged: float) -> None:
        """A row that the ledger has now; ``charged``: what `Standing.charge` said of it, in E."""
        if (standing := self.standing.get(job.label)) is not None:
            standing.add(row, charged)
        self._rows.setdefault(job.trial, {})[job.cell.place] = row
        self.absent |= without_backdoor([row])

    def trials_of(self, search: Search) -> dict[str, list[Row]]:
        """The rows of each setting of ``search`` on its cells, by trial id."""
        cells = self.standing[search.label].cells
        found = {}
        for trial, rows in self._rows.items():
            own = [row for place, row in rows.items() if row["search"] == search.label and place in cells]
            if own:
                found[trial] = own
        return found

    def on_cells(self, search: Search, trial: str) -> list[Row]:
        """The rows of a setting on the cells of its search."""
        return [*self._on_cells(search.label, trial).values()]

    def on_cells_with(self, job: Job, row: Row) -> list[Row]:
        """The same of the job's setting, with the job's row, which is not there yet."""
        return [*(self._on_cells(job.label, job.trial) | {job.cell.place: row}).values()]

    def is_dropped(self, label: str, trial: str) -> bool:
        """Whether a setting is out of the race of its search; False where there is no such search."""
        return label in self.standing and trial in self.standing[label].dropped

    def resume(self, search: OptunaSearch) -> list[tuple[str, dict[str, Any]]]:
        """Bring a search up to the rows; its settings that are not finished, by trial id, see `OptunaSearch.resume`."""
        mine = self.trials_of(search.search)
        dropped = mine.keys() & self.standing[search.search.label].dropped
        complete = {
            trial: rows for trial, rows in mine.items() if is_complete(search.search, rows) and trial not in dropped
        }
        values = {trial: self.scores(rows) for trial, rows in complete.items()} | dict.fromkeys(dropped)
        remarks = {trial: self.remarks(rows) for trial, rows in complete.items()}
        remarks |= {trial: self.remarks_on_dropped(trial) for trial in dropped}
        started = {trial: _settings(rows[0]) for trial, rows in mine.items()}
        return search.resume(values, started, remarks, dropped)

    def scores(self, rows: Sequence[Row]) -> Values | None:
        """What a search is told of a setting, see `results.scores.scores`."""
        return scores(rows, self.absent)

    def remarks(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What is told beside it."""
        return remarks_on(rows, self.absent)

    def remarks_on_dropped(self, trial: str) -> dict[str, Any]:
        """The same of a setting that was dropped, from all the rows it has."""
        return remarks_on_dropped([*self._rows[trial].values()])

    def front_point(self, rows: Sequence[Row]) -> Values | None:
        """Where a setting lies that may be on a front, see `results.scores.front_point`."""
        return front_point(rows, self.absent)

    def _on_cells(self, label: str, trial: str) -> dict[Place, Row]:
        cells = self.standing[label].cells
        return {place: row for place, row in self._rows.get(trial, {}).items() if place in cells}


def _settings(row: Row) -> dict[str, Any]:
    return {key.removeprefix(PARAM): value for key, value in row.items() if key.startswith(PARAM)}
