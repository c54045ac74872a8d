"""Means of runs with their intervals, over attack seeds, defense seeds and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from study.claims.runs import Run
from study.results.intervals import Counted, Estimate, difference, estimate


@dataclass(frozen=True)
class Pair:
    """A run, or two of the same victim and seeds whose difference counts: ``run`` less ``minus``."""

    run: Run
    minus: Run | None = None

    @property
    def runs(self) -> tuple[Run, ...]:
        """Both, or the one."""
        return (self.run,) if self.minus is None else (self.run, self.minus)

    def value(self, measure: str) -> float:
        """The measure of the run, or the difference."""
        return self.run.values[measure] - (0.0 if self.minus is None else self.minus.values[measure])


def estimates(pairs: Sequence[Pair], measures: Sequence[str]) -> dict[str, Estimate]:
    """Mean of each measure over the runs, with its 95 % interval.

    Over attack seeds and test images, see `study.results.intervals`.
    """
    return {measure: _estimate(pairs, measure) for measure in measures}


def _estimate(pairs: Sequence[Pair], measure: str) -> Estimate:
    first = [one.run for one in pairs]
    rows = [first] if pairs[0].minus is None else [first, [one.minus or one.run for one in pairs]]
    rates = np.array([[run.values[measure] for run in row] for row in rows], dtype=float)
    images = np.array([run.n_clean if measure == "clean_accuracy" else run.n_triggered for run in first], dtype=float)
    counted = Counted(rates, rates, images, images, np.array([run.seed for run in first], dtype=np.int64))
    if len(rows) > 1:
        return difference(counted, "asr")
    return estimate(counted, lambda rates, _: rates[:, 0])
