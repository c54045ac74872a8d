"""What the searches of a running study chose, run again on fresh seeds (``search.confirm``)."""

from __future__ import annotations

from study.plan.jobs import Search
from study.record.ledger import Ledger
from study.results.chosen import jobs_to_confirm, left_to_confirm
from study.results.finished import Standing
from trainables.job import Job


class Confirming:
    """The jobs of each search, known once it is over.

    Args:
        ledger: whose rows say what a search chose.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: dict[str, list[Job]] = {}
        self._handed_out = set[str]()  # searches whose jobs were

    def choose_anew(self) -> None:
        """What the searches chose may be something else now."""
        self._jobs = {}

    def hand_out_anew(self) -> None:
        """`next_of` gives all jobs once more: those of other searches, or of other cells, left the queue."""
        self._handed_out.clear()

    def next_of(self, search: Search, standing: Standing) -> list[Job]:
        """The jobs of a search, those with a row included: once, when it is over, and nothing before and after."""
        if search.label in self._handed_out or (jobs := self._known(search, standing)) is None:
            return []
        self._handed_out.add(search.label)
        return jobs

    def left(self, search: Search, standing: Standing, asked: int) -> int:
        """Rows still to come, see `chosen.left_to_confirm`."""
        jobs = self._known(search, standing)
        return left_to_confirm(search, standing, jobs, lambda job: self._ledger.has(*job.key), asked)

    def _known(self, search: Search, standing: Standing) -> list[Job] | None:
        """The trials of what a search chose on fresh seeds; None while it is not over."""
        if search.label not in self._jobs:
            if (jobs := jobs_to_confirm(search, standing, self._ledger.rows())) is None:
                return None
            self._jobs[search.label] = jobs
        return self._jobs[search.label]
