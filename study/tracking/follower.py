"""One tracking tool that follows the ledger in a thread: whatever becomes of the tool, the study goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from study.plan.jobs import Plan
from study.tracking.marks import Mark, Marks
from study.tracking.points import Point, Points
from trainables.storage.messages import one_line

PERIOD = 2.0  # seconds between looks at the ledger
RETRY_SECONDS = 60.0  # after the tool failed
ROWS_AT_ONCE = 100


class Tracker(Protocol):
    """One tool. Methods may raise whatever the tool raises, and may take as long as it takes.

    ``place`` says where runs are kept; under another one a study is a new run.
    """

    place: str

    def open(self, run: str | None) -> str:
        """Open the run with this id, or a new one; returns its id."""

    def link(self) -> str:
        """Where the open run is seen."""

    def log(self, points: Sequence[Point]) -> None:
        """Send points; after it returned they are the tool's business."""

    def close(self, finished: bool) -> None:
        """Keep the study's tables and report with the run, and end it so that it can be opened again.

        ``finished``: True if the study is finished, False if it was interrupted.
        """


class Follower(threading.Thread):
    """Sends every row of a growing ledger to ``tracker``, in order, and each once unless the driver is killed.

    Args:
        tool: its name in the spec.
        tracker: of that tool.
        plan: gives the study's, see `Points`.
        rows: gives the rows of its ledger so far, in order.
        marks: which run it is, and how far it got.
        say: takes one line for the user.
    """

    def __init__(
        self,
        tool: str,
        tracker: Tracker,
        plan: Callable[[], Plan],
        rows: Callable[[], Sequence[Mapping[str, Any]]],
        marks: Marks,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name=f"tracking-{tool}", daemon=True)  # a tool that hangs does not keep the process
        self.tool, self.tracker, self.marks, self.say = tool, tracker, marks, say
        self._rows = rows
        self._points, self._converted, self._unsent = Points(plan), 0, list[tuple[int, Point]]()
        self._mark: Mark | None = None
        self._warned = False
        self._finished = False
        self._stopped = threading.Event()

    def stop(self, finished: bool) -> None:
        """Send what is left, once, and end the thread."""
        self._finished = finished
        self._stopped.set()

    def run(self) -> None:
        wait = 0.0
        while True:
            last = self._stopped.wait(wait)
            try:
                self._follow(last)
                wait = PERIOD
            except Exception as error:  # noqa: BLE001 - whatever a tool raises, it must not touch the study
                self._warn(error)
                wait = RETRY_SECONDS
            if last:
                return

    def _follow(self, last: bool) -> None:
        rows = self._rows()
        mark = self.marks.get(self.tool, self.tracker.place)
        if self._mark is None:
            if mark is not None and mark.ended and mark.rows >= len(rows):
                return  # a finished study was looked at again
            run = self.tracker.open(mark.run if mark else None)
            mark = Mark(self.tracker.place, run, mark.rows if mark else 0)
            self.marks.put(self.tool, mark, keep=True)
            self._mark = mark
            self.say(f"tracking: {self.tracker.link()}")
        self._send(rows)
        if last:
            self.tracker.close(self._finished)
            self.marks.put(self.tool, replace(self._mark, ended=True), keep=True)

    def _send(self, rows: Sequence[Mapping[str, Any]]) -> None:
        assert self._mark is not None
        for number in range(self._converted, len(rows)):
            self._unsent += [(number + 1, point) for point in self._points.add(rows[number])]
            self._converted = number + 1
        self._unsent = [(number, point) for number, point in self._unsent if number > self._mark.rows]
        while self._unsent:
            upto = min(self._unsent[0][0] + ROWS_AT_ONCE - 1, self._unsent[-1][0])
            batch = [point for number, point in self._unsent if number <= upto]
            self.tracker.log(batch)
            self._unsent = [(number, point) for number, point in self._unsent if number > upto]
            self._mark = replace(self._mark, rows=upto)
            self.marks.put(self.tool, self._mark)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            why = one_line(error)[:300]
            self.say(
                f"WARNING: tracking: {self.tool} failed ({why}); the study goes on, and what {self.tool} misses is "
                "sent when it answers again, also by the same command later"
            )
