"""What a search with equal compute may still spend: E of settings that have ended, and of those that run."""

from __future__ import annotations

import math

# Rounding of sums must not keep the last setting out.
SLACK = 1e-9


class Budget:
    """The compute of one search, in E over all of its cells.

    A setting that would overspend is not started: what it costs at most is known before (`Defense.plan`). What it has
    cost counts once it has ended. The published point is shown whatever it costs; where it alone exceeds the limit, it
    is not counted.

    Args:
        limit: E over all cells of the search; None: no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit, self.spent = limit, 0.0
        self._reserved: dict[str, float] = {}

    @property
    def left(self) -> float:
        """E that no setting has spent or holds; never negative."""
        if self.limit is None:
            return math.inf
        return max(0.0, self.limit - self.spent - math.fsum(self._reserved.values()))

    @property
    def runs(self) -> bool:
        """Whether settings are running that may leave some of what they hold."""
        return bool(self._reserved)

    def admits(self, epochs: float) -> bool:
        """Whether a setting of so many planned E may start."""
        return self.limit is None or epochs <= self.left + SLACK * self.limit

    def exceeds(self, epochs: float) -> bool:
        """Whether so many E are more than the whole limit."""
        return self.limit is not None and epochs > self.limit * (1 + SLACK)

    def start(self, trial: str, epochs: float) -> None:
        """Hold the planned E of a setting while it runs."""
        self._reserved[trial] = epochs

    def charge(self, trial: str, epochs: float) -> None:
        """Count what a cell of a setting has cost; what the setting holds shrinks by it."""
        self.spent += epochs
        if trial in self._reserved:
            self._reserved[trial] = max(0.0, self._reserved[trial] - epochs)

    def end(self, trial: str) -> None:
        """Give back what a setting held and did not spend."""
        self._reserved.pop(trial, None)
