"""The study's own loop without Ray: which job is next, and what a finished one means for ledger and searches."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from search_spaces.space import published_for
from study.plan.jobs import CONFIRM, Key, Plan, Search
from study.record.columns import CELLS_SAVED, DROPPED_BY, SCHEMA
from study.record.cost import Bill
from study.record.ledger import Ledger, row_key
from study.results.chosen import jobs_to_confirm, left_to_confirm
from study.results.finished import BEYOND_BUDGET, ROUNDING, Place, Standing
from study.results.pareto import RunningFront
from study.results.scores import front_point, remarks_on, remarks_on_dropped, scores, without_backdoor
from study.run.races import Races
from study.search.optuna_search import OptunaSearch
from study.spec.methods import is_published
from study.spec.over_attacks import MEAN
from trainables.evaluation.curve import Point
from trainables.job import Cell, Job
from trainables.trial import plugins_of


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
        absent: victims without a backdoor (`Cell.whose`), which the plan leaves out or not.
        cost: planned E of settings on a cell; needed where searches have a budget.
        ended: searches into whose budget nothing more fitted before, see `record.ended`.
        on_end: called with the same once another search has ended so.
        on_curve: called with a row and its curve, before the row counts as done.
        keep: name in the store under which a job's repaired model is kept; empty: it is not.

    Raises:
        ValueError: searches have a budget, and the cost of a trial is not known.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        searches: Sequence[OptunaSearch],
        absent: Collection[Key] = (),
        *,
        cost: Callable[[Cell, Mapping[str, Any]], float] | None = None,
        ended: Mapping[str, int] = MappingProxyType({}),
        on_end: Callable[[Mapping[str, int]], None] | None = None,
        on_curve: Callable[[Mapping[str, Any], list[Point]], None] | None = None,
        keep: Callable[[Job], str] | None = None,
    ) -> None:
        if plan.spec.search.budget_epochs is not None and cost is None:
            raise ValueError("a search with a budget needs to know what a setting costs before it runs: give cost")
        self.plan, self.ledger, self.searches = plan, ledger, list(searches)
        self._known_absent = set(absent)
        self.broken: dict[Hashable, str] = {}
        self._queue: deque[Job] = deque()
        self._cost, self._on_end, self._on_curve, self._keep = cost, on_end, on_curve, keep
        self._ended, self._parked = dict(ended), set[str]()
        self._confirming = set[str]()  # searches whose chosen settings were queued for fresh seeds
        self._held: dict[str, dict[str, float]] = {search.search.label: {} for search in searches}
        self._races = Races()
        self._rows: dict[str, dict[Place, Mapping[str, Any]]] = {}
        for row in ledger.rows():
            self._rows.setdefault(row["trial"], {})[row_key(row)[1:]] = row
        self._look_at_rows()
        for job in plan.baselines:
            self._enqueue(job)
        for search in searches:
            self._resume(search)

    def _look_at_rows(self) -> None:
        """All that follows from plan and ledger alone."""
        self._by_label = {search.search.label: search for search in self.searches}
        self._standing = {
            label: Standing(self.plan, search.search, self._ended.get(label))
            for label, search in self._by_label.items()
        }
        self.fronts = {label: RunningFront() for label in self._by_label}
        self._races.begin(self.plan, [search.search for search in self.searches], self._known_absent)
        self._absent = set(without_backdoor(self.ledger.rows()))
        self._to_confirm: dict[str, list[Job]] = {}
        for row in self.ledger.rows():
            if (standing := self._standing.get(str(row.get("search")))) is not None:
                standing.add(row)
        for search in self.searches:
            for trial, rows in self._rows_of(search).items():
                self._offer(search, [*rows.values()])
                if trial in self._standing[search.search.label].dropped:
                    self._races.drop(search.search.label, trial)

    @property
    def done(self) -> int:
        """Rows in the ledger."""
        return len(self.ledger)

    @property
    def total(self) -> int:
        """Rows of the finished study; less than planned where a search ran out of new settings or of its budget.

        While a search with a budget still runs, its part is an estimate.
        """
        return self.done + self.remaining().total()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.remaining().total()

    def remaining(self) -> Counter[str]:
        """Rows still to come of each search and baseline, by its label; the sum is what `total` lacks."""
        left: Counter[str] = Counter()
        for job in self.plan.baselines:
            left[job.label] += not self.ledger.has(*job.key)
        for search in self.searches:
            own, standing = search.search, self._standing[search.search.label]
            left[own.label] += standing.rows_left(search.asked)
            jobs, asked = self._confirm(own), search.asked
            left[own.confirm_label] += left_to_confirm(
                own, standing, jobs, lambda job: self.ledger.has(*job.key), asked
            )
        return +left

    def models_of(self, label: str) -> tuple[int, int]:
        """On how many models the numbers of a search rest, and how many there were meant to be."""
        cells = self._by_label[label].search.cells
        absent = self._known_absent | {victim[2:] for victim in self._absent}
        return len({cell.whose for cell in cells} - absent), self.plan.models("search")

    def leave_out(self, absent: Collection[Key]) -> None:
        """Plan without these victims, which were found to hold no backdoor; nothing runs yet.

        What they have in the ledger stays there.
        """
        if not absent:
            return
        self._known_absent |= set(absent)
        self.plan = self.plan.without(absent)
        planned = {search.label: search for search in self.plan.searches}
        for search in self.searches:
            if search.search.label not in planned:
                search.abandon()
        self.searches = [search for search in self.searches if search.search.label in planned]
        for search in self.searches:
            label, before = search.search.label, len(search.search.cells)
            search.replan(planned[label], search.target)
            fewer = len(search.search.cells) / before
            self._held[label] = {trial: fewer * epochs for trial, epochs in self._held[label].items()}
        cells = {(one.label, *cell.place) for one in self.plan.searches for cell in one.cells}
        cells |= {(job.label, *job.key[1:]) for job in self.plan.baselines}
        self._queue = deque(job for job in self._queue if (job.label, *job.key[1:]) in cells)
        self._races.keep(lambda job: (job.label, *job.key[1:]) in cells)
        self._confirming.clear()
        self._look_at_rows()
        for search in self.searches:
            for trial in self._rows_of(search):
                self._tell_if_complete(search, trial)

    def set_detectors(self, tuned: Mapping[str, Mapping[str, Any]]) -> None:
        """Search on with the detectors' settings that were chosen, by the label of their search; nothing runs yet."""
        self.plan = self.plan.with_detectors(tuned)
        planned = {search.label: search for search in self.plan.searches}
        for search in self.searches:
            own = planned[search.search.label]
            search.replan(own, self.plan.most_settings(own))
        self._look_at_rows()

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
            if job.cell.made_from not in self.broken:
                return job
            self.fail(job, self.broken[job.cell.made_from])

    def put_back(self, job: Job) -> None:
        """Hand ``job`` out again, next: it was lost with its node, and nothing is known of it."""
        if not self._is_dropped(job):
            self._queue.appendleft(job)

    def waits(self) -> bool:
        """Whether a running trial may still open the way for more jobs.

        It may leave some of what it was to cost, or be the last of a search whose choice is then run on fresh seeds.
        """
        if self._parked:
            return True
        return any(
            search.search.fresh and not standing.over and standing.finished < search.asked
            for search in self.searches
            for standing in (self._standing[search.search.label],)
        )

    def finish(self, job: Job, row: Mapping[str, Any], curve: list[Point] | None = None) -> dict[str, Any]:
        """Record a measured job and tell its search once the setting is measured on all its cells.

        Args:
            curve: of the repair, where one was asked for.
        """
        full: dict[str, Any] = {
            "study": self.plan.spec.name,
            "trial": job.trial,
            **row,
            "role": job.role,
            "search": job.label if job.label in self._by_label or job.role == CONFIRM else None,
            "published": job.published,
            "published_for": published_for(job.cell.defense, job.cell.data.name) if job.published else None,
            "schema": SCHEMA,
            "models": self.plan.models(job.role),
        }
        if (rule := self.plan.spec.search.aggregate) != str(MEAN):
            full["aggregate"] = rule
        search = self._by_label.get(job.label)
        if search is not None and search.search.repeat:
            full["repeat"] = search.search.repeat
        if search is not None and job.trial in search.origins:
            full["warm_start"] = search.origins[job.trial]
        if search is not None and (start := search.search.start_named(job.settings)) is not None:
            full["start"] = start
        if search is not None and self._is_beyond(search, job.settings):
            full["flags"] = [*full.get("flags", ()), BEYOND_BUDGET]
        rival = None if search is None or self._is_dropped(job) else self._rival(job, full)
        if rival is not None:
            full |= rival
        charged = Bill().charge(full) if search is None else self._standing[job.label].charge(full)
        full["charged_epochs"] = charged
        if curve and self._on_curve is not None:  # first: without its row, a trial runs again
            self._on_curve(full, curve)
        self.ledger.append(full)
        if search is not None:  # what could not be written does not count
            self._standing[job.label].add(full, charged)
        self._rows.setdefault(job.trial, {})[job.cell.place] = full
        self._absent |= without_backdoor([full])
        if search is not None:
            self._parked.discard(job.label)
            self._release(job, full)
            if rival is not None:
                self._drop(search, job.trial)
            for later in self._races.next_of(job.trial):
                self._enqueue(later)
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

    def break_victims(self, victims: Mapping[Hashable, str]) -> None:
        """Victims that could not be made (`Cell.made_from`), with the cause: jobs on them fail without being run.

        A search that has only such victims ends after its first setting.
        """
        self.broken.update(victims)

    def _ask(self, wanted: Callable[[Job], bool]) -> bool:
        """Ask a search for one more setting and queue a job for each of its cells; False if no search has one.

        Of the searches that are ``wanted``, the one that has asked for the smallest part of its settings goes first.
        What an ended search chose comes before all of them.
        """
        if any(self._queue_confirming(search.search) for search in self.searches):
            return True
        for search in sorted(self.searches, key=lambda search: search.asked / search.target):
            if not any(
                wanted(Job(search.search.label, "", search.search.role, cell, {}, False))
                for cell in search.search.cells
            ):
                continue
            if search.asked and all(cell.made_from in self.broken for cell in search.search.cells):
                continue
            label = search.search.label
            if label in self._parked or not self._standing[label].may_ask(search.asked):
                continue
            if (asked := search.ask(partial(self._affords, search))) is not None:
                self._enqueue_setting(search, *asked)
                return True
            if self._held[label]:
                self._parked.add(label)
            elif self._standing[label].budget is not None:
                self._ended[label] = self._standing[label].ended = search.asked
                if self._on_end is not None:
                    self._on_end(self._ended)
        for job in self._races.next_of_any(wanted):
            self._enqueue(job)
            return True
        return False

    def _is_dropped(self, job: Job) -> bool:
        """Whether the setting of a job is out of its race."""
        return job.label in self._standing and job.trial in self._standing[job.label].dropped

    def _rival(self, job: Job, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Columns of the row with which a setting is dropped; None if it is not, or if nothing would be saved."""
        cells = self._standing[job.label].cells
        rows = {place: one for place, one in self._rows.get(job.trial, {}).items() if place in cells}
        rival = self._races.rival(job, [*(rows | {job.cell.place: row}).values()])
        saved = self._races.count_waiting(job.trial) + sum(one.trial == job.trial for one in self._queue)
        return {DROPPED_BY: rival, CELLS_SAVED: saved} if rival is not None and saved else None

    def _drop(self, search: OptunaSearch, trial: str) -> None:
        """Run no further cell of a setting, whose last row says so already, and tell its search."""
        self._races.drop(search.search.label, trial)
        self._queue = deque(job for job in self._queue if job.trial != trial)
        search.drop(trial, remarks_on_dropped([*self._rows[trial].values()]))

    def _confirm(self, search: Search) -> list[Job] | None:
        """The trials of what a search chose on fresh seeds; None while it is not over."""
        if search.label not in self._to_confirm:
            if (jobs := jobs_to_confirm(search, self._standing[search.label], self.ledger.rows())) is None:
                return None
            self._to_confirm[search.label] = jobs
        return self._to_confirm[search.label]

    def _queue_confirming(self, search: Search) -> bool:
        """Queue them, once; False if there is nothing new to run."""
        if search.label in self._confirming or (jobs := self._confirm(search)) is None:
            return False
        self._confirming.add(search.label)
        before = len(self._queue)
        for job in jobs:
            self._enqueue(job)
        return len(self._queue) > before

    def _planned(self, search: OptunaSearch, settings: Mapping[str, Any]) -> float:
        """E of settings on all cells of a search; 0 where there is no budget to keep."""
        if self._cost is None or self._standing[search.search.label].budget is None:
            return 0.0
        return math.fsum(self._cost(cell, settings) for cell in search.search.cells)

    def _affords(self, search: OptunaSearch, settings: Mapping[str, Any]) -> bool:
        """Whether settings fit into what neither finished nor running ones take of the search's budget."""
        standing = self._standing[search.search.label]
        if standing.budget is None or self._is_beyond(search, settings):
            return True
        taken = standing.spent + math.fsum(self._held[search.search.label].values())
        return taken + self._planned(search, settings) <= standing.budget * (1 + ROUNDING)

    def _is_beyond(self, search: OptunaSearch, settings: Mapping[str, Any]) -> bool:
        """Whether settings are the published point and cost more than the whole budget: they are run beside it."""
        budget = self._standing[search.search.label].budget
        if budget is None or not self._is_published(search, settings):
            return False
        return self._planned(search, settings) > budget * (1 + ROUNDING)

    def _is_published(self, search: OptunaSearch, settings: Mapping[str, Any]) -> bool:
        return is_published(search.search.defense, settings, search.search.cells[0].data.name)

    def _release(self, job: Job, row: Mapping[str, Any]) -> None:
        """What a setting holds of the budget shrinks by what a cell of it has cost, to nothing with its last."""
        held = self._held[job.label]
        if job.trial not in held:
            return
        held[job.trial] = max(0.0, held[job.trial] - row["charged_epochs"])
        if len(self._on_cells(self._by_label[job.label], job.trial)) >= len(self._by_label[job.label].search.cells):
            del held[job.trial]

    def _resume(self, search: OptunaSearch) -> None:
        mine = self._rows_of(search)
        dropped, cells = mine.keys() & self._standing[search.search.label].dropped, len(search.search.cells)
        complete = {trial: rows for trial, rows in mine.items() if len(rows) >= cells and trial not in dropped}
        values = {trial: scores(rows.values(), self._absent) for trial, rows in complete.items()}
        started = {trial: _settings(next(iter(rows.values()))) for trial, rows in mine.items()}
        remarks = {trial: remarks_on([*rows.values()], self._absent) for trial, rows in complete.items()}
        values |= dict.fromkeys(dropped)
        remarks |= {trial: remarks_on_dropped([*self._rows[trial].values()]) for trial in dropped}
        for trial_id, settings in search.resume(values, started, remarks, dropped):
            self._enqueue_setting(search, trial_id, settings)

    def _rows_of(self, search: OptunaSearch) -> dict[str, dict[Place, Mapping[str, Any]]]:
        """The rows of each setting of ``search`` on its cells, by trial id and then by place."""
        label, cells = search.search.label, self._standing[search.search.label].cells
        found = {}
        for trial, rows in self._rows.items():
            own = {key: row for key, row in rows.items() if row["search"] == label and key in cells}
            if own:
                found[trial] = own
        return found

    def _enqueue_setting(self, search: OptunaSearch, trial_id: str, settings: dict[str, Any]) -> None:
        published = self._is_published(search, settings)
        if self._standing[search.search.label].budget is not None and not self._is_beyond(search, settings):
            spent = math.fsum(row["charged_epochs"] for row in self._on_cells(search, trial_id))
            self._held[search.search.label][trial_id] = max(0.0, self._planned(search, settings) - spent)
        # A repeated search is read for its front alone.
        along, after = self.plan.spec.curve.every, None if search.search.repeat else self.plan.aftermath
        label, role = search.search.label, search.search.role
        jobs = [
            Job(label, trial_id, role, cell, settings, published, along, after)
            for cell in self._races.in_turn(search.search, trial_id)
        ]
        for job in self._races.hold([job for job in jobs if not self.ledger.has(*job.key)]):
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if not self.ledger.has(*job.key):
            self._queue.append(job if self._keep is None else dataclasses.replace(job, keep=self._keep(job)))

    def _tell_if_complete(self, search: OptunaSearch, trial_id: str) -> None:
        rows = self._on_cells(search, trial_id)
        if len(rows) < len(search.search.cells) or trial_id in self._standing[search.search.label].dropped:
            return
        search.tell(trial_id, scores(rows, self._absent), remarks_on(rows, self._absent))
        self._offer(search, rows)

    def _on_cells(self, search: OptunaSearch, trial_id: str) -> list[Mapping[str, Any]]:
        """The rows of a setting on the cells of its search."""
        cells = self._standing[search.search.label].cells
        return [row for place, row in self._rows.get(trial_id, {}).items() if place in cells]

    def _offer(self, search: OptunaSearch, rows: Sequence[Mapping[str, Any]]) -> None:
        """A setting to the front of its search."""
        if len(rows) >= len(search.search.cells) and (values := front_point(rows, self._absent)) is not None:
            self.fronts[search.search.label].add(*values)
            self._races.add(search.search.label, rows)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
