"""What a running study tells to those who look on: ``now.json`` in its folder, and Ray's metrics.

From a thread of its own, so that it goes on while the driver waits for a victim or a long trial. Whatever becomes of
it, the study goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from study.plan.slots import Node, count_slots
from study.record.folder import Folder
from study.record.now import NOW_FILE, NodeNow, Now, write_now
from study.record.remote_folder import RemoteFolder
from study.run.dispatcher import Dispatcher
from study.run.driver import Driver
from study.run.progress import Progress
from study.run.ray_metrics import RayMetrics

log = logging.getLogger("superft.live")

BEAT_SECONDS = 5.0
KEEP_SECONDS = 20.0  # between copies to a URI


class Live:
    """Tells every `BEAT_SECONDS`, for the time of the block, what the driver is at.

    Args:
        driver, progress, home: of the study.
        clock: seconds since the epoch; tests pass their own.
    """

    def __init__(
        self,
        driver: Driver,
        progress: Progress,
        home: Folder | RemoteFolder,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._driver, self._progress, self._home, self._clock = driver, progress, home, clock
        self._metrics = RayMetrics(driver.plan.spec.name, driver.ledger.rows())
        self._host, self._pid, self._began = socket.gethostname(), os.getpid(), clock()
        self._phase, self._outcome = "starting", ""
        self._nodes: Sequence[Node] = ()
        self._victims: int | None = None
        self._dispatcher: Dispatcher | None = None
        self._kept, self._warned = 0.0, False
        self._end, self._thread = threading.Event(), threading.Thread(target=self._run, name="live", daemon=True)

    def phase(self, name: str, nodes: Sequence[Node] | None = None, victims: int | None = None) -> None:
        """What begins now, see `record.now.PHASES`; the nodes that it runs on, and how many victims are needed."""
        self._phase = name
        self._nodes = self._nodes if nodes is None else nodes
        self._victims = self._victims if victims is None else victims

    def trials(self, dispatcher: Dispatcher) -> None:
        """The trials begin."""
        self._dispatcher = dispatcher
        self.phase("trials")

    def look(self) -> Now:
        """What there is to tell now."""
        nodes, slots, gpus = self._nodes, None, list[float]()
        running: Counter[str] = Counter()
        if self._dispatcher is not None:
            room, shares = self._dispatcher.room, {*self._dispatcher.shares.values()}
            nodes, gpus, running = room.nodes, self._dispatcher.given, room.running
            slots = max((count_slots(nodes, room.cpus, share) for share in shares), default=0)
        told = [NodeNow(one.name, one.cpus, one.gpus, one.accelerator, running[one.name]) for one in nodes]
        return Now(
            host=self._host,
            pid=self._pid,
            began=self._began,
            seen=self._clock(),
            phase=self._phase,
            outcome=self._outcome,
            nodes=tuple(told),
            slots=slots,
            running=len(gpus),
            gpus_busy=round(sum(gpus), 4),
            victims=self._victims,
            victims_ready=self._progress.victims_ready,
            victims_failed=self._progress.victims_failed,
            left=self._progress.left,
        )

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._outcome = "finished" if self._driver.finished and error is None else "interrupted"
        if error is not None and not isinstance(error, KeyboardInterrupt):
            self._outcome = "failed"
        self._phase, self._dispatcher = "ended", None
        self._tell(keep=False)  # what is published in the end holds it

    def _run(self) -> None:
        while True:
            self._tell(keep=True)
            if self._end.wait(BEAT_SECONDS):
                return

    def _tell(self, *, keep: bool) -> None:
        now = self.look()
        if now.phase != "ended":  # Ray has gone by then
            progress = self._progress
            self._metrics.record(now, self._driver.ledger.rows(), dict(progress.hypervolumes), progress.seconds_left)
        try:
            write_now(self._home.path, now)
            if keep and now.seen - self._kept >= KEEP_SECONDS:
                self._kept = now.seen
                self._home.keep(NOW_FILE)
        except OSError as error:  # a full disk ends the study where a row does not fit, and says so there
            if not self._warned:
                log.info("%s cannot be written: %s", NOW_FILE, error)
            self._warned = True
