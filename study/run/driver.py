"""The study's own loop without Ray: which job is next, and what a finished one means for ledger and searches."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_spaces.space import published_for
from study.plan.jobs import Plan
from study.record.columns import SCHEMA
from study.record.cost import Bill
from study.record.ledger import Ledger
from study.results.pareto import RunningFront
from study.results.scores import has_backdoor, remarks_on, scores
from study.search.optuna_search import OptunaSearch
from study.spec.methods import is_published
from trainables.job import Job
from trainables.trial import plugins_of
from trainables.victims import VictimSpec


def _any(job: Job) -> bool:
    return True


class Driver:
    """Hands out jobs, takes results: one row to the ledger, then `tell`.

    The ledger is the truth. A driver made over the ledger and storage of an interrupted study hands out exactly the
    jobs that have no row, the interrupted settings first and under their old ids.

    Args:
        plan: the work.
        ledger: opened for appending.
        searches: one per search of the plan, in its order.
    """

    def __init__(self, plan: Plan, ledger: Ledger, searches: Sequence[OptunaSearch]) -> None:
        self.plan, self.ledger, self.searches = plan, ledger, list(searches)
        self.fronts: dict[str, RunningFront] = {search.search.label: RunningFront() for search in searches}
        self.broken: dict[VictimSpec, str] = {}
        self._queue: deque[Job] = deque()
        self._spent: dict[str, float] = {search.search.label: 0.0 for search in searches}
        self._bills = {search.search.label: Bill() for search in searches}
        self._by_label = {search.search.label: search for search in searches}
        self._rows: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
        for row in ledger.rows():
            self._rows.setdefault(row["trial"], {})[row["attack"], row["seed"]] = row
        for job in plan.baselines:
            self._enqueue(job)
        for search in searches:
            self._resume(search)

    @property
    def done(self) -> int:
        """Rows in the ledger."""
        return len(self.ledger)

    @property
    def total(self) -> int:
        """Rows of the finished study; less than planned where a search ran out of new settings or of its budget.

        While a search with a budget still runs, its part is an estimate.
        """
        return len(self.plan.baselines) + sum(
            len(search.search.cells) * self._settings_in_the_end(search) for search in self.searches
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.total

    def remaining(self) -> Counter[str]:
        """Rows still to come of each search and baseline, by its label; the sum is what `total` lacks."""
        left: Counter[str] = Counter()
        for job in self.plan.baselines:
            left[job.label] += not self.ledger.has(*job.key)
        for search in self.searches:
            made = sum(len(rows) for rows in self._rows_of(search).values())
            left[search.search.label] += self._settings_in_the_end(search) * len(search.search.cells) - made
        return left

    def has_work(self) -> bool:
        """Whether `next_job` has a job to hand out now (asks the searches for one if need be)."""
        while not self._queue and self._ask(_any):
            pass  # a setting whose rows are all there leaves nothing to do
        return bool(self._queue)

    def next_job(self, wanted: Callable[[Job], bool] = _any) -> Job | None:
        """The next job that is ``wanted``, or None when all of those are handed out.

        Of a search that has not been asked yet, ``wanted`` sees a job without id and settings.
        """
        while True:
            job = next((job for job in self._queue if wanted(job)), None)
            if job is None:
                if not self._ask(wanted):
                    return None
                continue
            self._queue.remove(job)
            if job.cell.victim not in self.broken:
                return job
            self.fail(job, self.broken[job.cell.victim])

    def put_back(self, job: Job) -> None:
        """Hand ``job`` out again, next: it was lost with its node, and nothing is known of it."""
        self._queue.appendleft(job)

    def waits(self) -> bool:
        """Whether a running trial may still open the way for more jobs: its cost decides what the budget allows."""
        budgeted = self.plan.spec.search.budget_epochs is not None
        return budgeted and any(
            search.asked > search.finished and search.asked < search.target and not search.exhausted
            for search in self.searches
        )

    def finish(self, job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
        """Record a measured job and tell its search once the setting is measured on all its cells."""
        full: dict[str, Any] = {
            "study": self.plan.spec.name,
            "trial": job.trial,
            **row,
            "role": job.role,
            "search": job.label if job.role == "search" else None,
            "published": job.published,
            "published_for": published_for(job.cell.defense, job.cell.data.name) if job.published else None,
            "schema": SCHEMA,
        }
        search = self._by_label.get(job.label)
        full["charged_epochs"] = (Bill() if search is None else self._bills[search.search.label]).charge(full)
        self.ledger.append(full)
        self._rows.setdefault(job.trial, {})[row["attack"], row["seed"]] = full
        if search is not None:
            self._spent[search.search.label] += full["charged_epochs"]
            self._tell_if_complete(search, job.trial)
        return full

    def fail(self, job: Job, error: str, **columns: Any) -> dict[str, Any]:
        """Record a job that could not be measured, with its cause and further columns."""
        row: dict[str, Any] = {
            **job.cell.columns(),
            "plugins": plugins_of(job.cell),
            "status": "failed",
            "error": error,
            **{f"param.{key}": value for key, value in job.settings.items()},
            **columns,
        }
        return self.finish(job, row)

    def break_victims(self, victims: Mapping[VictimSpec, str]) -> None:
        """Victims that could not be made, with the cause: jobs on them fail without being run.

        A search that has only such victims ends after its first setting.
        """
        self.broken.update(victims)

    def _ask(self, wanted: Callable[[Job], bool]) -> bool:
        """Ask a search for one more setting and queue a job for each of its cells; False if no search has one.

        Of the searches that are ``wanted``, the one that has asked for the smallest part of its settings goes first.
        """
        for search in sorted(self.searches, key=lambda search: search.asked / search.target):
            if not any(wanted(Job(search.search.label, "", "search", cell, {}, False)) for cell in search.search.cells):
                continue
            if search.asked and all(cell.victim in self.broken for cell in search.search.cells):
                search.exhausted = True
            if self._budget_is_spent(search):
                continue
            if (asked := search.ask()) is not None:
                self._enqueue_setting(search, *asked)
                return True
        return False

    def _resume(self, search: OptunaSearch) -> None:
        label, cells = search.search.label, search.search.cells
        mine = self._rows_of(search)
        complete = {trial: scores(rows) for trial, rows in mine.items() if len(rows) >= len(cells)}
        started = {trial: _settings(next(iter(rows.values()))) for trial, rows in mine.items()}
        remarks = {trial: remarks_on(mine[trial]) for trial in complete}
        for trial_id, settings in search.resume(complete, started, remarks):
            self._enqueue_setting(search, trial_id, settings)
        for trial, values in complete.items():
            if values is not None and has_backdoor(mine[trial]):
                self.fronts[label].add(*values)
        self._spent[label] = math.fsum(
            self._bills[label].charge(row) for rows in mine.values() for row in rows.values()
        )

    def _rows_of(self, search: OptunaSearch) -> dict[str, dict[tuple[str, int], Mapping[str, Any]]]:
        """The rows of each setting of ``search``, by trial id and then by attack and seed."""
        label = search.search.label
        return {trial: rows for trial, rows in self._rows.items() if next(iter(rows.values()))["search"] == label}

    def _cost_of_a_setting(self, search: OptunaSearch) -> float:
        """Mean over the finished ones, in E; 0 while there is none."""
        return self._spent[search.search.label] / max(1, search.finished)

    def _budget_is_spent(self, search: OptunaSearch) -> bool:
        """Whether what is finished and, at its mean cost, what is running use up the budget of equal compute."""
        budget = self.plan.spec.search.budget_epochs
        if budget is None or search.asked == 0:
            return False
        if search.finished == 0:
            return True  # the published point runs alone: its cost says how many more there are
        committed = self._spent[search.search.label] + (search.asked - search.finished) * self._cost_of_a_setting(
            search
        )
        return committed >= budget * len(search.search.cells)

    def _settings_in_the_end(self, search: OptunaSearch) -> int:
        budget, each = self.plan.spec.search.budget_epochs, self._cost_of_a_setting(search)
        if search.exhausted or (search.finished == search.asked > 0 and self._budget_is_spent(search)):
            return search.asked
        if budget is None or each == 0.0:
            return search.target
        return max(search.asked, min(search.target, math.ceil(budget * len(search.search.cells) / each)))

    def _enqueue_setting(self, search: OptunaSearch, trial_id: str, settings: dict[str, Any]) -> None:
        dataset = search.search.cells[0].data.name
        published = is_published(search.search.defense, settings, dataset)
        for cell in search.search.cells:
            self._enqueue(Job(search.search.label, trial_id, "search", cell, settings, published))

    def _enqueue(self, job: Job) -> None:
        if not self.ledger.has(*job.key):
            self._queue.append(job)

    def _tell_if_complete(self, search: OptunaSearch, trial_id: str) -> None:
        rows = self._rows[trial_id]
        if len(rows) < len(search.search.cells):
            return
        values = scores(rows)
        search.tell(trial_id, values, remarks_on(rows))
        if values is not None and has_backdoor(rows):
            self.fronts[search.search.label].add(*values)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
