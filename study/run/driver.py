"""The study's own loop without Ray: which job is next, and what a finished one means for ledger and searches."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from search_spaces.space import published_for
from study.plan.jobs import Plan
from study.record.columns import SCHEMA
from study.record.cost import Bill
from study.record.ended import Ended, Why
from study.record.ledger import Ledger, row_key
from study.results.pareto import RunningFront
from study.results.scores import has_backdoor, remarks_on, scores
from study.search.budget import Budget
from study.search.optuna_search import OptunaSearch
from study.spec.methods import is_published
from trainables.job import Cell, Job
from trainables.trial import plugins_of
from trainables.victims import VictimSpec

# Flag of a published setting that alone costs more than its search may spend: shown, and counted in nothing.
BEYOND_BUDGET = "beyond_budget"


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
        cost: planned E of settings on a cell; needed where searches have a budget.
        ended: searches that had ended before, and why, see `record.ended`.
        on_end: called with the same once another search has ended.

    Raises:
        ValueError: searches have a budget, and the cost of a trial is not known.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        searches: Sequence[OptunaSearch],
        *,
        cost: Callable[[Cell, Mapping[str, Any]], float] | None = None,
        ended: Mapping[str, Ended] = MappingProxyType({}),
        on_end: Callable[[Mapping[str, Ended]], None] | None = None,
    ) -> None:
        budget = plan.spec.search.budget_epochs
        if budget is not None and cost is None:
            raise ValueError("a search with a budget needs to know what a setting costs before it runs: give cost")
        self.plan, self.ledger, self.searches = plan, ledger, list(searches)
        self.fronts: dict[str, RunningFront] = {search.search.label: RunningFront() for search in searches}
        self.broken: dict[VictimSpec, str] = {}
        self._queue: deque[Job] = deque()
        self._cost, self.ended, self._on_end = cost, dict(ended), on_end
        self._budgets = {
            one.search.label: Budget(None if budget is None else budget * len(one.search.cells)) for one in searches
        }
        self._parked: set[str] = set()
        self._bills = {search.search.label: Bill() for search in searches}
        self._by_label = {search.search.label: search for search in searches}
        self._rows: dict[str, dict[tuple[str, int, int], Mapping[str, Any]]] = {}
        for row in ledger.rows():
            self._rows.setdefault(row["trial"], {})[row_key(row)[1:]] = row
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
        """Whether a running trial may still open the way for more jobs: it may leave some of what it was to cost."""
        return bool(self._parked)

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
        if search is not None and self._is_beyond(search, job.settings, job.published):
            full["flags"] = [*full.get("flags", ()), BEYOND_BUDGET]
        self.ledger.append(full)
        self._rows.setdefault(job.trial, {})[job.key[1:]] = full
        if search is not None:
            self._parked.discard(job.label)
            if BEYOND_BUDGET not in full.get("flags", ()):
                self._budgets[job.label].charge(job.trial, full["charged_epochs"])
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
            label = search.search.label
            if label in self.ended or label in self._parked or search.asked >= search.target:
                continue
            if search.asked and all(cell.victim in self.broken for cell in search.search.cells):
                search.exhausted = True  # for now: the victims may be mended
                continue
            if (asked := search.ask(partial(self._affords, search))) is not None:
                self._enqueue_setting(search, *asked)
                return True
            if search.exhausted:
                self._end(search, "space")
            elif self._budgets[label].runs:
                self._parked.add(label)
            else:
                self._end(search, "budget")
        return False

    def _end(self, search: OptunaSearch, why: Why) -> None:
        """Keep that a search asks for no more settings, and why: the ledger alone does not tell."""
        self.ended[search.search.label] = Ended(search.asked, why)
        if self._on_end is not None:
            self._on_end(self.ended)

    def _is_published(self, search: OptunaSearch, settings: Mapping[str, Any]) -> bool:
        return is_published(search.search.defense, settings, search.search.cells[0].data.name)

    def _planned(self, search: OptunaSearch, settings: Mapping[str, Any]) -> float:
        """E of settings on all cells of a search; 0 where there is no budget to keep."""
        if self._cost is None:
            return 0.0
        return math.fsum(self._cost(cell, settings) for cell in search.search.cells)

    def _affords(self, search: OptunaSearch, settings: Mapping[str, Any]) -> bool:
        budget = self._budgets[search.search.label]
        if budget.limit is None:
            return True
        published = self._is_published(search, settings)
        return budget.admits(self._planned(search, settings)) or self._is_beyond(search, settings, published)

    def _is_beyond(self, search: OptunaSearch, settings: Mapping[str, Any], published: bool) -> bool:
        """Whether settings are the published point and cost more than the whole budget: they are run beside it."""
        budget = self._budgets[search.search.label]
        return published and budget.limit is not None and budget.exceeds(self._planned(search, settings))

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
        for trial, rows in mine.items():
            for row in rows.values():
                epochs = self._bills[label].charge(row)
                if BEYOND_BUDGET not in row.get("flags", ()):
                    self._budgets[label].charge(trial, epochs)

    def _rows_of(self, search: OptunaSearch) -> dict[str, dict[tuple[str, int, int], Mapping[str, Any]]]:
        """The rows of each setting of ``search``, by trial id and then by attack and seeds."""
        label = search.search.label
        return {trial: rows for trial, rows in self._rows.items() if next(iter(rows.values()))["search"] == label}

    def _settings_in_the_end(self, search: OptunaSearch) -> int:
        """How many settings the search will have asked for; with a budget that is left, a guess at their mean cost."""
        label = search.search.label
        budget = self._budgets[label]
        if label in self.ended or search.exhausted:
            return search.asked
        if budget.limit is None or search.finished == 0 or budget.spent == 0.0:
            return search.target
        more = math.floor(budget.left / (budget.spent / search.finished))
        return max(search.asked, min(search.target, search.asked + more))

    def _enqueue_setting(self, search: OptunaSearch, trial_id: str, settings: dict[str, Any]) -> None:
        published = self._is_published(search, settings)
        if not self._is_beyond(search, settings, published):
            self._budgets[search.search.label].start(trial_id, self._planned(search, settings))
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
        self._budgets[search.search.label].end(trial_id)
        search.tell(trial_id, values, remarks_on(rows))
        if values is not None and has_backdoor(rows):
            self.fronts[search.search.label].add(*values)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
