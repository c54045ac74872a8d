"""The jobs of a running study that may be handed out now."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from study.record.ledger import Ledger
from trainables.job import Job


class JobQueue:
    """Jobs in the order in which they are handed out; none that has its row gets in.

    Args:
        ledger: where the rows are.
        keep: name in the store under which a job's repaired model is kept; None: none is.
    """

    def __init__(self, ledger: Ledger, keep: Callable[[Job], str] | None = None) -> None:
        self._ledger, self._keep = ledger, keep
        self._jobs: deque[Job] = deque()

    def add(self, job: Job) -> None:
        """To the end, unless it has its row."""
        if not self._ledger.has(*job.key):
            self._jobs.append(job if self._keep is None else dataclasses.replace(job, keep=self._keep(job)))

    def put_back(self, job: Job) -> None:
        """To the front, as it was taken."""
        self._jobs.appendleft(job)

    def take(self, wanted: Callable[[Job], bool]) -> Job | None:
        """The first that is ``wanted``, which leaves the queue; None if there is none."""
        job = next((job for job in self._jobs if wanted(job)), None)
        if job is not None:
            self._jobs.remove(job)
        return job

    def count(self, trial: str) -> int:
        """How many are of that setting."""
        return sum(job.trial == trial for job in self._jobs)

    def drop(self, trial: str) -> None:
        """None of that setting is handed out any more."""
        self.retain(lambda job: job.trial != trial)

    def retain(self, stays: Callable[[Job], bool]) -> None:
        """Only those that stay in the plan."""
        self._jobs = deque(filter(stays, self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)
