"""The study's own loop without Ray: which job is next, and what a finished one means for ledger and searches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from study.plan.jobs import Plan
from study.record.columns import SCHEMA
from study.record.cost import Bill
from study.record.ledger import Ledger
from study.results.finished import Standing
from study.results.pareto import RunningFront
from study.results.scores import front_point, remarks_on, scores, without_backdoor
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
        absent: attacks and seeds of victims without a backdoor, which the plan leaves out or not.
    """

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        searches: Sequence[OptunaSearch],
        absent: Collection[tuple[str, int]] = (),
    ) -> None:
        self.plan, self.ledger, self.searches = plan, ledger, list(searches)
        self._known_absent = set(absent)
        self.broken: dict[VictimSpec, str] = {}
        self._queue: deque[Job] = deque()
        self._rows: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
        for row in ledger.rows():
            self._rows.setdefault(row["trial"], {})[row["attack"], row["seed"]] = row
        self._look_at_rows()
        for job in plan.baselines:
            self._enqueue(job)
        for search in searches:
            self._resume(search)

    def _look_at_rows(self) -> None:
        """All that follows from plan and ledger alone."""
        self._by_label = {search.search.label: search for search in self.searches}
        self._standing = {search.search.label: Standing(self.plan, search.search) for search in self.searches}
        self.fronts = {label: RunningFront() for label in self._by_label}
        self._absent = set(without_backdoor(self.ledger.rows()))
        for row in self.ledger.rows():
            if (standing := self._standing.get(str(row.get("search")))) is not None:
                standing.add(row)
        for search in self.searches:
            for rows in self._rows_of(search).values():
                self._offer(search, [*rows.values()])

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
            left[search.search.label] += self._standing[search.search.label].rows_left(search.asked)
        return left

    def models_of(self, label: str) -> tuple[int, int]:
        """On how many models the numbers of a search rest, and how many there were meant to be."""
        cells = self._by_label[label].search.cells
        absent = self._known_absent | {victim[2:] for victim in self._absent}
        return sum((cell.attack, cell.seed) not in absent for cell in cells), self.plan.models("search")

    def leave_out(self, absent: Collection[tuple[str, int]]) -> None:
        """Plan without the victims of these attacks and seeds, which were found to hold no backdoor; nothing runs yet.

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
            search.search = planned[search.search.label]
        cells = {(one.label, cell.attack, cell.seed) for one in self.plan.searches for cell in one.cells}
        cells |= {(job.label, *job.key[1:]) for job in self.plan.baselines}
        self._queue = deque(job for job in self._queue if (job.label, *job.key[1:]) in cells)
        self._look_at_rows()
        for search in self.searches:
            for trial in self._rows_of(search):
                self._tell_if_complete(search, trial)

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
            search.asked > search.finished and search.asked < search.target for search in self.searches
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
            "schema": SCHEMA,
            "models": self.plan.models(job.role),
        }
        search = self._by_label.get(job.label)
        full["charged_epochs"] = Bill().charge(full) if search is None else self._standing[job.label].add(full)
        self.ledger.append(full)
        self._rows.setdefault(job.trial, {})[row["attack"], row["seed"]] = full
        self._absent |= without_backdoor([full])
        if search is not None:
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
                continue
            if not self._standing[search.search.label].may_ask(search.asked):
                continue
            if (asked := search.ask()) is not None:
                self._enqueue_setting(search, *asked)
                return True
        return False

    def _resume(self, search: OptunaSearch) -> None:
        mine = self._rows_of(search)
        complete = {trial: rows for trial, rows in mine.items() if len(rows) >= len(search.search.cells)}
        values = {trial: scores(rows.values(), self._absent) for trial, rows in complete.items()}
        started = {trial: _settings(next(iter(rows.values()))) for trial, rows in mine.items()}
        remarks = {trial: remarks_on([*rows.values()], self._absent) for trial, rows in complete.items()}
        for trial_id, settings in search.resume(values, started, remarks):
            self._enqueue_setting(search, trial_id, settings)

    def _rows_of(self, search: OptunaSearch) -> dict[str, dict[tuple[str, int], Mapping[str, Any]]]:
        """The rows of each setting of ``search`` on its cells, by trial id and then by attack and seed."""
        label, cells = search.search.label, {(cell.attack, cell.seed) for cell in search.search.cells}
        found = {}
        for trial, rows in self._rows.items():
            own = {key: row for key, row in rows.items() if row["search"] == label and key in cells}
            if own:
                found[trial] = own
        return found

    def _enqueue_setting(self, search: OptunaSearch, trial_id: str, settings: dict[str, Any]) -> None:
        published = is_published(search.search.defense, settings)
        for cell in search.search.cells:
            self._enqueue(Job(search.search.label, trial_id, "search", cell, settings, published))

    def _enqueue(self, job: Job) -> None:
        if not self.ledger.has(*job.key):
            self._queue.append(job)

    def _tell_if_complete(self, search: OptunaSearch, trial_id: str) -> None:
        cells = [(cell.attack, cell.seed) for cell in search.search.cells]
        rows = [row for key, row in self._rows[trial_id].items() if key in cells]
        if len(rows) < len(cells):
            return
        search.tell(trial_id, scores(rows, self._absent), remarks_on(rows, self._absent))
        self._offer(search, rows)

    def _offer(self, search: OptunaSearch, rows: Sequence[Mapping[str, Any]]) -> None:
        """A setting to the front of its search."""
        if len(rows) >= len(search.search.cells) and (values := front_point(rows, self._absent)) is not None:
            self.fronts[search.search.label].add(*values)


def _settings(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("param."): value for key, value in row.items() if key.startswith("param.")}
