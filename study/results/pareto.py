"""Pareto front, hypervolume, knee and picks of points.

A point is (ASR, clean accuracy), both fractions in [0, 1]; ASR is minimised, clean accuracy maximised.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainables.evaluation.metrics import der

Points = Sequence[tuple[float, float]] | NDArray[np.float64]
DROPS = (0.005, 0.01, 0.02, 0.05)  # clean accuracy given up, fractions
BOX_ASR, BOX_DROP = 0.2, 0.10  # second hypervolume box


def pick_label(drop: float) -> str:
    """Name of the pick "least ASR among settings that give up at most ``drop`` (fraction) of clean accuracy"."""
    return f"drop_{100 * drop:g}"


PICKS = (*(pick_label(drop) for drop in DROPS), "max_der")


def non_dominated_indices(points: Points) -> list[int]:
    """Indices of the front, ASR ascending (so clean accuracy ascending too); of equal points the first stays.

    (a, c) dominates (a', c') if a <= a' and c >= c' and one of the two is strict.
    """
    values = _array(points)
    best = -np.inf
    front = []
    for index in np.lexsort((np.arange(len(values)), -values[:, 1], values[:, 0])):
        if values[index, 1] > best:
            front.append(int(index))
            best = values[index, 1]
    return front


def hypervolume(points: Points) -> float:
    """Area dominated by the points within ASR <= 1 and clean accuracy >= 0, in [0, 1]; 1 is the perfect repair.

    Over the front sorted by ASR: HV = sum_i (ASR_{i+1} - ASR_i) CA_i with ASR_{n+1} = 1. One point (a, c): (1 - a) c.
    """
    values = _array(points)
    front = values[non_dominated_indices(values)]
    return float(np.sum(np.diff(np.append(front[:, 0], 1.0)) * front[:, 1])) if len(front) else 0.0


def hypervolume_box(points: Points, clean_accuracy_before: float) -> float:
    """Hypervolume within the region that matters, in [0, 1]: reference ASR 0.2 and clean accuracy CA_before - 0.10.

    The box ends at (ASR 0, CA_before) and is scaled to area 1: 1 means that the backdoor is gone at no price.
    Accuracy gained beyond CA_before does not count, a point outside (ASR >= 0.2, or more than 10 points of accuracy
    lost) adds nothing.
    """
    values = _array(points)
    floor = clean_accuracy_before - BOX_DROP
    inside = np.column_stack([values[:, 0] / BOX_ASR, np.minimum((values[:, 1] - floor) / BOX_DROP, 1.0)])
    return hypervolume(inside[(inside[:, 0] < 1.0) & (inside[:, 1] > 0.0)])


def knee(points: Points) -> int | None:
    """Index of the front's knee: after min-max scaling, the front point farthest from the chord of its two extremes.

    Distance counts towards the lower right (less ASR, more accuracy). Ties go to the higher clean accuracy. None where
    no point lies on that side, as on a straight line or a front of two: an end of it would be called the knee, and that
    may be a setting that repairs nothing. A front of one point is its own knee.

    Raises:
        ValueError: no points.
    """
    values = _array(points)
    front = non_dominated_indices(values)
    if not front:
        raise ValueError("knee of no points; give at least one (ASR, clean accuracy)")
    chosen = values[front]
    span = np.ptp(chosen, axis=0)
    scaled = (chosen - chosen.min(axis=0)) / np.where(span > 0, span, 1.0)
    # The extremes scale to (0, 0) and (1, 1), so the chord is ASR = CA and the signed distance (CA - ASR) / sqrt(2).
    distance = np.round((scaled[:, 1] - scaled[:, 0]) / np.sqrt(2.0), 12)
    farthest = max(range(len(front)), key=lambda i: (distance[i], chosen[i, 1]))
    return front[farthest] if len(front) == 1 or distance[farthest] > 0 else None


def picks(points: Points, asr_before: float, clean_accuracy_before: float) -> dict[str, int]:
    """Indices of the settings that a user would choose; a pick that nothing satisfies is left out.

    ``drop_0.5``, ``drop_1``, ``drop_2``, ``drop_5``: least ASR (then most accuracy) with CA >= CA_before - 0.5, 1, 2,
    5 points. ``max_der``: greatest DER among points that lost at most 10 points of accuracy (DER alone prefers a
    ruined model to no change).
    """
    values = _array(points)
    front = non_dominated_indices(values)
    chosen: dict[str, int] = {}
    for drop in DROPS:
        allowed = [i for i in front if values[i, 1] >= clean_accuracy_before - drop - 1e-12]
        if allowed:
            chosen[pick_label(drop)] = allowed[0]
    allowed = [i for i in front if values[i, 1] >= clean_accuracy_before - BOX_DROP - 1e-12]
    if allowed:
        chosen["max_der"] = max(
            allowed,
            key=lambda i: (round(der(asr_before, values[i, 0], clean_accuracy_before, values[i, 1]), 12), values[i, 1]),
        )
    return chosen


class RunningFront:
    """The front while a study runs: each ``add`` costs O(front), however many points came before."""

    def __init__(self) -> None:
        self._asr: list[float] = []
        self._accuracy: list[float] = []
        self._elsewhere: list[tuple[float, float]] = []

    def add(self, asr: float, clean_accuracy: float, elsewhere: tuple[float, float] = (1.0, 0.0)) -> bool:
        """Offer a point (fractions); True if it joined the front. ``elsewhere``: the same setting's on other images."""
        at = bisect.bisect_right(self._asr, asr)
        if at and self._accuracy[at - 1] >= clean_accuracy:
            return False
        start = at - 1 if at and self._asr[at - 1] == asr else at
        stop = start
        while stop < len(self._asr) and self._accuracy[stop] <= clean_accuracy:
            stop += 1
        self._asr[start:stop] = [asr]
        self._accuracy[start:stop] = [clean_accuracy]
        self._elsewhere[start:stop] = [elsewhere]
        return True

    @property
    def points(self) -> list[tuple[float, float]]:
        """(ASR, clean accuracy) of the front, both ascending."""
        return list(zip(self._asr, self._accuracy, strict=True))

    @property
    def elsewhere(self) -> list[tuple[float, float]]:
        """Where the settings of `points` lie on other images, in the same order."""
        return list(self._elsewhere)

    @property
    def hypervolume(self) -> float:
        """As ``hypervolume(points)``."""
        ends = [*self._asr, 1.0][1:]
        return sum((end - asr) * ca for asr, end, ca in zip(self._asr, ends, self._accuracy, strict=True))

    def __len__(self) -> int:
        return len(self._asr)


def _array(points: Points) -> NDArray[np.float64]:
    values = np.asarray(points, dtype=float).reshape(-1, 2)
    if not np.isfinite(values).all():
        raise ValueError("points must be finite pairs (ASR, clean accuracy); drop failed trials first")
    return values
