"""Which job runs next on what share of a card, and what becomes of jobs that ended, were cut, or lacked memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping

from study.plan.slots import Room, describe_share, next_larger
from study.record.stopped import Trouble
from study.run.driver import Driver
from study.run.progress import Progress
from trainables.job import Cut, Failed, Job, NoGpu, OutOfMemory, Report, Row, StoreLost

# A node that died is still offered for some seconds, and a trial can lose all its tries to it: it is then put back.
MAX_RETURNS = 3
# Trials of a defense that were short of memory until all of its trials get more: each had cost its time twice.
MOST_OVERFLOWS = 2
RETRIED = "retried_out_of_memory"
LONGEST_CAUSE = 300  # characters of torch's own words in the row

Key = tuple[str, str, int, int]  # of a job


class Dispatcher:
    """Hands out as many of the driver's jobs as there is room for, and no more.

    A setting that waits was chosen without the results that come in meanwhile.

    Args:
        driver: of the study.
        progress: is told of every row.
        room: on the nodes.
        shares: GPUs of the trials of each search and baseline, by its label.
        trouble: is told of a store that stays away.
    """

    def __init__(
        self, driver: Driver, progress: Progress, room: Room, shares: Mapping[str, float], trouble: Trouble
    ) -> None:
        self.driver, self.progress, self.room, self.shares = driver, progress, room, dict(shares)
        self.trouble = trouble
        self._running: dict[str, tuple[Job, float]] = {}
        self._returned: Counter[Key] = Counter()
        self._first: dict[Key, float] = {}  # shares that were too small
        self._overflows: Counter[str] = Counter()
        self._freed: float | None = None

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        """Tune pickles its searcher beside the trials, to restore a run; a study is continued from its ledger instead.

        What would be written holds the whole ledger, and the stream of the progress lines, which in a notebook cannot
        be pickled.
        """
        return object, ()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing more will: a running trial may be put back, or its cost allow another."""
        return not self._running and not self.driver.has_work() and not self.driver.waits()

    @property
    def given(self) -> list[float]:
        """GPUs of each running trial; may be asked from another thread."""
        return [gpus for _, gpus in [*self._running.values()]]

    def gpus_of(self, job: Job) -> float:
        """The share that ``job`` gets now."""
        first, share = self._first.get(job.key), self.shares[job.label]
        return share if first is None else max(next_larger(first) or first, share)

    def start(self, trial: str) -> tuple[Job, float] | None:
        """A job for ``trial``, and its GPUs; None while there is no room, or no job."""
        sizes = {*self.shares.values(), *(next_larger(first) or first for first in self._first.values())}
        fitting = {gpus for gpus in sizes if self.room.fits(gpus)}
        # The actor of the trial that ended is idle, but takes only what has its size: others must be started, and an
        # actor takes as long to start as a short trial.
        for chosen in (fitting & {self._freed}, fitting):
            if chosen and (job := self.driver.next_job(_of_size(self.gpus_of, chosen))) is not None:
                gpus, self._freed = self.gpus_of(job), None
                self._running[trial] = job, gpus
                self.room.take(trial, gpus)
                return job, gpus
        return None

    def report(self, trial: str, report: Report) -> None:
        """What a trial of ours reported at its end."""
        if trial not in self._running:
            return
        job, gpus = self._end(trial)
        match report:
            case Row(columns, curve):
                row = json.loads(columns)
                row["flags"] = [*row.get("flags", ()), *self._flags(job)]
                self.progress.trial(self.driver.finish(job, row, json.loads(curve) if curve else None))
            case Cut(cause) | Failed(cause):
                self._fail(job, gpus, cause)
            case OutOfMemory(cause):
                self._overflow(job, gpus, cause)
            case StoreLost(cause):
                if not self._put_back(job):
                    self.trouble.report(cause)
            case NoGpu(cause):  # every trial on that node would end so
                self.trouble.report(cause)

    def lost(self, trial: str, cause: str, node_died: bool) -> None:
        """All tries of a trial raised or died."""
        if trial not in self._running:
            return
        job, gpus = self._end(trial)
        if not (node_died and self._put_back(job)):
            self._fail(job, gpus, cause)

    def _put_back(self, job: Job) -> bool:
        """Hand the job out again, unless that was done often enough."""
        if self._returned[job.key] >= MAX_RETURNS:
            return False
        self._returned[job.key] += 1
        self.driver.put_back(job)
        return True

    def _overflow(self, job: Job, gpus: float, cause: str) -> None:
        """Once more with more memory; recorded as failed after that, or where there is no more."""
        key, larger, here = job.key, next_larger(gpus), describe_share(gpus)
        if larger is None or key in self._first:
            earlier = f", after {describe_share(self._first[key])}" if key in self._first else ""
            self._fail(
                job, gpus, f"out of memory on {here} of a GPU{earlier}: {' '.join(cause.split())[:LONGEST_CAUSE]}"
            )
            return
        self._first[key] = gpus
        self.progress.say(f"{job.trial}: out of memory on {here} of a GPU; once more on {describe_share(larger)}")
        self.driver.put_back(job)
        defense = job.cell.defense
        self._overflows[defense] += 1
        if self._overflows[defense] == MOST_OVERFLOWS:
            self._enlarge(defense)

    def _enlarge(self, defense: str) -> None:
        del self._overflows[defense]
        for label in self.driver.plan.labels_of(defense):
            self.shares[label] = next_larger(self.shares[label]) or self.shares[label]
        self.progress.say(f"{MOST_OVERFLOWS} trials of {defense} were out of memory: all of its trials get more now")

    def _fail(self, job: Job, gpus: float, cause: str) -> None:
        self.progress.trial(self.driver.fail(job, cause, gpus=gpus, flags=self._flags(job)))

    def _flags(self, job: Job) -> list[str]:
        return [RETRIED] if job.key in self._first else []

    def _end(self, trial: str) -> tuple[Job, float]:
        job, self._freed = self._running.pop(trial)
        self.room.give_back(trial)
        return job, self._freed


def _of_size(gpus_of: Callable[[Job], float], sizes: set[float]) -> Callable[[Job], bool]:
    return lambda job: gpus_of(job) in sizes
