"""The races of a running study: whose cells come when, and whose do not come any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from study.plan.jobs import Key, Plan, Search
from study.results.finished import Place
from study.results.scores import MEASURED, told_of
from study.search.racing import Race
from trainables.job import Cell, Job

Row = Mapping[str, Any]


class Races:
    """A race for each search of a plan, if it wants them, and the trials that wait until an earlier one has ended."""

    def __init__(self) -> None:
        self._races: dict[str, Race] = {}
        self._absent: Collection[Key] = ()
        self._block = 0
        self._waiting: dict[str, deque[Job]] = {}

    def begin(self, plan: Plan, searches: Sequence[Search], absent: Collection[Key]) -> None:
        """Race in these searches from now on, without any rival yet; trials that wait keep their places.

        Args:
            absent: victims without a backdoor, on which nothing counts.
        """
        self._races, self._absent = {}, absent
        if (racing := plan.spec.search.racing) is None:
            return
        self._block = racing.block
        for search in searches:
            places = [cell.place for cell in search.cells if cell.whose not in absent]
            self._races[search.label] = Race(
                places,
                alpha=racing.alpha,
                margin=racing.margin,
                settings=plan.most_settings(search),
                seed=plan.spec.seeds[0],
            )

    def in_turn(self, search: Search, trial: str) -> list[Cell]:
        """The cells of a setting in their order; those that count nowhere come last."""
        if (race := self._races.get(search.label)) is None:
            return [*search.cells]
        turn = {place: number for number, place in enumerate(race.order(trial))}
        return sorted(search.cells, key=lambda cell: turn.get(cell.place, len(turn)))

    def hold(self, jobs: Sequence[Job]) -> list[Job]:
        """Of a setting's trials that are to run, in their order, those that may run now; the others wait."""
        if not jobs or jobs[0].label not in self._races:
            return [*jobs]
        # The published point is shown on all cells, whatever it comes to.
        now = len(jobs) if jobs[0].published else self._block
        if jobs[now:]:
            self._waiting[jobs[0].trial] = deque(jobs[now:])
        return [*jobs[:now]]

    def next_of(self, trial: str) -> list[Job]:
        """The trial of that setting whose turn it is now that another one has ended."""
        return self._take(trial)

    def next_of_any(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """A trial that waits and is ``wanted``, of the setting that was asked first: better than an idle slot."""
        return next((self._take(trial) for trial, jobs in self._waiting.items() if wanted(jobs[0])), [])

    def count_waiting(self, trial: str) -> int:
        """Trials of a setting that wait."""
        return len(self._waiting.get(trial, ()))

    def drop(self, label: str, trial: str) -> None:
        """A setting is out of its race; its trials that wait are not run."""
        self._waiting.pop(trial, None)
        if label in self._races:
            self._races[label].drop(trial)

    def keep(self, stays: Callable[[Job], bool]) -> None:
        """Of the trials that wait, only those that stay in the plan."""
        left = {trial: deque(filter(stays, jobs)) for trial, jobs in self._waiting.items()}
        self._waiting = {trial: jobs for trial, jobs in left.items() if jobs}

    def add(self, label: str, rows: Sequence[Row]) -> None:
        """A setting that may be on the front of a search and has a row for each of its cells: it is a rival now."""
        if (race := self._races.get(label)) is not None:
            values = {_place(row): told_of(row) for row in rows if row["status"] in MEASURED}
            if all(place in values for place in race.places):
                race.add(rows[0]["trial"], values)

    def rival(self, job: Job, rows: Sequence[Row]) -> str | None:
        """The setting that dominates the job's beyond doubt, given all rows of the latter; None if there is none."""
        if job.published or (race := self._races.get(job.label)) is None:
            return None
        return race.rival(job.trial, {_place(row): told_of(row) for row in rows if row["status"] in MEASURED})

    def _take(self, trial: str) -> list[Job]:
        if not (jobs := self._waiting.get(trial)):
            return []
        job = jobs.popleft()
        if not jobs:
            del self._waiting[trial]
        return [job]


def _place(row: Row) -> Place:
    return row["attack"], row["seed"], row.get("defense_seed", 0)
