"""Means of runs with their intervals, over attack seeds, defense seeds and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from study.claims.runs import Run
from study.results.equal_rules import Counted, Estimate, interval_of, resample


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

    `study.results.equal_rules.resample` draws attack seeds, of each its defense seeds, and rates given the counts of
    test images; of a difference for each of the two runs by itself.
    """
    return {measure: _estimate(pairs, measure) for measure in measures}


def _estimate(pairs: Sequence[Pair], measure: str) -> Estimate:
    first = [one.run for one in pairs]
    rows = [first] if pairs[0].minus is None else [first, [one.minus or one.run for one in pairs]]
    rates = np.array([[run.values[measure] for run in row] for row in rows], dtype=float)
    images = np.array([run.n_clean if measure == "clean_accuracy" else run.n_triggered for run in first], dtype=float)
    mean = float(rates[0].mean() - (rates[1].mean() if len(rates) > 1 else 0.0))
    if not images.all():
        return Estimate(mean, mean, mean)
    seeds, own = (np.array([getattr(run, name) for run in first], dtype=np.int64) for name in ("seed", "defense_seed"))
    drawn, _ = resample(Counted(rates, rates, images, images, seeds, own), shared_luck=False)
    return interval_of(mean, drawn[:, 0] - (drawn[:, 1] if len(rates) > 1 else 0.0))
