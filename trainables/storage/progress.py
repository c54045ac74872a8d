"""How far long work on files has come, in lines of the log: done/total and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 10.0  # seconds


class Progress:
    """Says how much is done, at most every `EVERY` seconds; work that ends before says nothing.

    Args:
        doing: begins the line, as in ``mine: decoded``.
        what: is counted, in the plural.
        total: of them.
        say: takes a line.
        clock: seconds; tests pass their own.
    """

    def __init__(
        self,
        doing: str,
        what: str,
        total: int,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.doing, self.what, self.total, self.say, self.clock = doing, what, total, say, clock
        self.done = 0
        self._began = self._said = clock()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = self.clock()
        if now - self._said < EVERY or self.done >= self.total:
            return
        self._said = now
        left = (now - self._began) * (self.total - self.done) / self.done
        words = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min"
        self.say(f"{self.doing} {self.done:,} of {self.total:,} {self.what}, {words} left")
