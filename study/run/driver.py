"""The study's own loop without Ray: which job is next, and what a finished one means for ledger and searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from study.plan.jobs import Key, Plan
from study.record.columns import CELLS_SAVED, DROPPED_BY
from study.record.cost import Bill
from study.record.ledger import Ledger
from study.results.finished import Standing
from study.results.pareto import RunningFront
from study.run.budgets import Budgets
from study.run.confirming import Confirming
from study.run.full_row import failed_row, full_row
from study.run.job_queue import JobQueue
from study.run.measured import Measured, is_complete
from study.run.races import Races
from study.search.optuna_search import OptunaSearch
from trainables.evaluation.curve import Point
from trainables.job import Cell, Job


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
        self._on_curve = on_curve
        self._queue = JobQueue(ledger, keep)
        self._budgets = Budgets([search.search.label for search in searches], cost, ended, on_end)
        self._confirming = Confirming(ledger)
        self._races = Races()
        self._measured = Measured(ledger)
        self._look_at_rows()
        for job in plan.baselines:
            self._queue.add(job)
        for search in searches:
            for trial_id, settings in self._measured.resume(search):
                self._enqueue_setting(search, trial_id, settings)

    def _look_at_rows(self) -> None:
        """All that follows from plan and ledger alone."""
        self._baselines_left = Counter(job.label for job in self.plan.baselines if not self.ledger.has(*job.key))
        self._by_label = {search.search.label: search for search in self.searches}
        self.fronts = {label: RunningFront() for label in self._by_label}
        searched = [search.search for search in self.searches]
        self._races.begin(self.plan, searched, self._known_absent)
        self._measured.look(self.plan, searched, self._budgets.ended)
        self._confirming.choose_anew()
        for search in self.searches:
            for trial, rows in self._measured.trials_of(search.search).items():
                self._offer(search, rows)
                if self._measured.is_dropped(search.search.label, trial):
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
        left = self._baselines_left.copy()
        for search in self.searches:
            own, standing = search.search, self._standing(search)
            left[own.label] += standing.rows_left(search.asked)
            left[own.confirm_label] += self._confirming.left(own, standing, search.asked)
        return +left

    def models_of(self, label: str) -> tuple[int, int]:
        """On how many models the numbers of a search rest, and how many there were meant to be."""
        cells = self._by_label[label].search.cells
        absent = self._known_absent | {victim[2:] for victim in self._measured.absent}
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
            self._budgets.shrink(label, len(search.search.cells) / before)
        cells = {(one.label, *cell.place) for one in self.plan.searches for cell in one.cells}
        cells |= {(job.label, *job.key[1:]) for job in self.plan.baselines}
        self._queue.retain(lambda job: (job.label, *job.key[1:]) in cells)
        self._races.keep(lambda job: (job.label, *job.key[1:]) in cells)
        self._confirming.hand_out_anew()
        self._look_at_rows()
        for search in self.searches:
            for trial in self._measured.trials_of(search.search):
                if is_complete(search.search, self._measured.on_cells(search.search, trial)):
                    self._budgets.release(search.search.label, trial, 0.0, last=True)
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
            job = self._queue.take(wanted)
            if job is None:
                if not self._ask(wanted):
                    return None
                continue
            if job.cell.made_from not in self.broken:
                return job
            self.fail(job, self.broken[job.cell.made_from])

    def put_back(self, job: Job) -> None:
        """Hand ``job`` out again, next: it was lost with its node, and nothing is known of it."""
        if not self._measured.is_dropped(job.label, job.trial):
            self._queue.put_back(job)

    def waits(self) -> bool:
        """Whether a running trial may still open the way for more jobs.

        It may leave some of what it was to cost, or be the last of a search whose choice is then run on fresh seeds.
        """
        if self._budgets.parked:
            return True
        return any(
            search.search.fresh and not standing.over and standing.finished < search.asked
            for search in self.searches
            for standing in (self._standing(search),)
        )

    def finish(self, job: Job, row: Mapping[str, Any], curve: list[Point] | None = None) -> dict[str, Any]:
        """Record a measured job and tell its search once the setting is measured on all its cells.

        Args:
            curve: of the repair, where one was asked for.
        """
        search = self._by_label.get(job.label)
        beyond = search is not None and self._budgets.is_beyond(search.search, self._standing(search), job.settings)
        full = full_row(self.plan, job, row, search, beyond_budget=beyond)
        dropped = {} if search is None else self._dropped_by(job, full)
        full |= dropped
        charged = Bill().charge(full) if search is None else self._standing(search).charge(full)
        full["charged_epochs"] = charged
        if curve and self._on_curve is not None:  # first: without its row, a trial runs again
            self._on_curve(full, curve)
        self.ledger.append(full)
        self._measured.add(job, full, charged)  # what could not be written does not count
        if search is None:
            if job.label in self._baselines_left:  # and not a setting on fresh seeds
                self._baselines_left[job.label] -= 1
        else:
            last = is_complete(search.search, self._measured.on_cells(search.search, job.trial))
            self._budgets.release(job.label, job.trial, charged, last=last)
            if dropped:
                self._drop(search, job.trial)
            for later in self._races.next_of(job.trial):
                self._queue.add(later)
            self._tell_if_complete(search, job.trial)
        return full

    def fail(self, job: Job, error: str, **columns: Any) -> dict[str, Any]:
        """Record a job that could not be measured, with its cause and further columns."""
        return self.finish(job, failed_row(job, error, columns))

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
        if any(self._queue_confirming(search) for search in self.searches):
            return True
        for search in sorted(self.searches, key=lambda search: search.asked / search.target):
            own, standing = search.search, self._standing(search)
            if not any(wanted(Job(own.label, "", own.role, cell, {}, False)) for cell in own.cells):
                continue
            if search.asked and all(cell.made_from in self.broken for cell in own.cells):
                continue
            if own.label in self._budgets.parked or not standing.may_ask(search.asked):
                continue
            if (asked := search.ask(partial(self._budgets.affords, own, standing))) is not None:
                self._enqueue_setting(search, *asked)
                return True
            self._budgets.end_or_wait(standing, search.asked)
        for job in self._races.next_of_any(wanted):
            self._queue.add(job)
            return True
        return False

    def _queue_confirming(self, search: OptunaSearch) -> bool:
        """Queue what a search chose for its fresh seeds, once; False if there is nothing new to run."""
        before = len(self._queue)
        for job in self._confirming.next_of(search.search, self._standing(search)):
            self._queue.add(job)
        return len(self._queue) > before

    def _dropped_by(self, job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of the row with which a setting is dropped; none if it is not, or if nothing would be saved."""
        if self._measured.is_dropped(job.label, job.trial):
            return {}
        rival = self._races.rival(job, self._measured.on_cells_with(job, row))
        saved = self._races.count_waiting(job.trial) + self._queue.count(job.trial)
        return {DROPPED_BY: rival, CELLS_SAVED: saved} if rival is not None and saved else {}

    def _drop(self, search: OptunaSearch, trial: str) -> None:
        """Run no further cell of a setting, whose last row says so already, and tell its search."""
        self._races.drop(search.search.label, trial)
        self._queue.drop(trial)
        search.drop(trial, self._measured.remarks_on_dropped(trial))

    def _standing(self, search: OptunaSearch) -> Standing:
        return self._measured.standing[search.search.label]

    def _enqueue_setting(self, search: OptunaSearch, trial_id: str, settings: dict[str, Any]) -> None:
        own = search.search
        published = own.is_published(settings)
        self._budgets.hold(own, self._standing(search), trial_id, settings, self._measured.on_cells(own, trial_id))
        # A repeated search is read for its front alone.
        along, after = self.plan.spec.curve.every, None if own.repeat else self.plan.aftermath
        jobs = [
            Job(own.label, trial_id, own.role, cell, settings, published, along, after)
            for cell in self._races.in_turn(own, trial_id)
        ]
        for job in self._races.hold([job for job in jobs if not self.ledger.has(*job.key)]):
            self._queue.add(job)

    def _tell_if_complete(self, search: OptunaSearch, trial_id: str) -> None:
        rows = self._measured.on_cells(search.search, trial_id)
        if not is_complete(search.search, rows) or self._measured.is_dropped(search.search.label, trial_id):
            return
        search.tell(trial_id, self._measured.scores(rows), self._measured.remarks(rows))
        self._offer(search, rows)

    def _offer(self, search: OptunaSearch, rows: Sequence[Mapping[str, Any]]) -> None:
        """A setting to the front of its search."""
        if is_complete(search.search, rows) and (values := self._measured.front_point(rows)) is not None:
            self.fronts[search.search.label].add(*values)
            self._races.add(search.search.label, rows)
