"""How far a repair is and how long it may take: read from its counters beside it, so that no method needs to tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainables.training.loop import Counters

EVERY_SECONDS = 10.0


def work_of(counters: Counters) -> int:
    """Forward and backward samples together."""
    return counters.forward_samples + counters.backward_samples + counters.input_backward_samples


@contextmanager
def told(
    counters: Counters,
    planned: Counters,
    say: Callable[[str], None] | None,
    *,
    what: str = "repair",
    every: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Say one line in so many seconds while the block lasts.

    Args:
        counters: of the work, which go up meanwhile.
        planned: what they will have reached at the end, at most.
        say: gets each line; None: nothing is said.
    """
    if say is None:
        yield
        return
    done = threading.Event()
    started, before, total = time.monotonic(), work_of(counters), max(1, work_of(planned))

    def watch() -> None:
        while not done.wait(every):
            share = min(1.0, (work_of(counters) - before) / total)
            passed = time.monotonic() - started
            left = f", at most {duration(passed / share - passed)} left" if share > 0.01 else ""
            say(f"{what}: {share:.0%} after {duration(passed)}{left}")

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
