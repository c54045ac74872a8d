"""What simulated searches come to: curves with bands, attainment surfaces, trials to a target, paired tests.

Everything here is a pure function of `clock.Trace`s: ``traces[variant][seed][label of the search]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from study.simulate.clock import Trace

Array = NDArray[np.float64]
Traces = Mapping[str, Sequence[Mapping[str, Trace]]]
BOXES = ("hypervolume", "corner")
LEVELS = (0.25, 0.5, 0.75)
STEPS = 100  # of the axis E, and of an attainment surface's axis ASR
SIGNIFICANT = 0.05


def over_trials(traces: Traces, box: str) -> dict[str, Array]:
    """Hypervolume by variant after each finished setting: (seeds, trials), the mean over the searches of a study.

    A search that ended earlier, since its space holds no more, keeps its last value.
    """
    longest = max(len(trace.epochs) for runs in traces.values() for run in runs for trace in run.values())

    def filled(values: Sequence[float]) -> Array:
        return np.concatenate([values, np.full(longest - len(values), values[-1])])

    return {
        name: np.array([np.mean([filled(getattr(trace, box)) for trace in run.values()], axis=0) for run in runs])
        for name, runs in traces.items()
    }


def common_epochs(traces: Traces) -> Array:
    """E at which all searches of all variants are compared: up to where the first of them has ended."""
    end = min(trace.epochs[-1] for runs in traces.values() for run in runs for trace in run.values())
    return np.linspace(0.0, end, STEPS + 1)


def over_epochs(traces: Traces, box: str, at: Array) -> dict[str, Array]:
    """Hypervolume by variant once so many E were spent: (seeds, len(at)), the mean over the searches of a study."""

    def steps(trace: Trace) -> Array:
        values = np.concatenate([[0.0], getattr(trace, box)])
        return np.asarray(values[np.searchsorted(trace.epochs, at, side="right")], dtype=np.float64)

    return {
        name: np.array([np.mean([steps(trace) for trace in run.values()], axis=0) for run in runs])
        for name, runs in traces.items()
    }


def attainment(fronts: Sequence[Sequence[tuple[float, float]]], at: Array) -> dict[float, list[float | None]]:
    """Empirical attainment surfaces: for each level the clean accuracy that this share of searches reaches.

    Fonseca and Fleming 1996 ("On the performance assessment and comparison of stochastic multiobjective optimizers"): a
    search attains (ASR a, accuracy c) if a setting on its front has no more ASR and no less accuracy.

    Args:
        fronts: one for each search, of (ASR, clean accuracy).
        at: values of ASR.

    Returns:
        Level -> for each ASR the greatest accuracy that at least this share of the searches attains; None: none does.
    """
    best = np.array(
        [[max((c for a, c in front if a <= limit), default=-math.inf) for limit in at] for front in fronts], dtype=float
    )
    ordered = -np.sort(-best, axis=0)  # from the greatest
    surfaces = {}
    for level in LEVELS:
        reached = ordered[math.ceil(level * len(fronts)) - 1]
        surfaces[level] = [None if math.isinf(value) else float(value) for value in reached]
    return surfaces


def first_reached(trace: Trace, box: str, target: float) -> tuple[int, float] | None:
    """Trials and E after which a search first has this hypervolume; None: it never has."""
    for number, value in enumerate(getattr(trace, box)):
        if value >= target - 1e-12:
            return number + 1, trace.epochs[number]
    return None


def to_target(runs: Sequence[Mapping[str, Trace]], box: str, targets: Mapping[str, float]) -> dict[str, Any]:
    """How soon the searches of a variant reach their target.

    Args:
        targets: hypervolume by the label of the search; one of 0 is no target, and its search is left out.

    Returns:
        ``reached``: the share that does. ``trials``, ``epochs``: medians over all searches, those that never reach it
        counted as infinitely late; None where the median one is among them. All are None without any target.
    """
    targets = {label: target for label, target in targets.items() if target > 0}
    if not targets:
        return {"reached": None, "trials": None, "epochs": None}
    found = [first_reached(run[label], box, target) for run in runs for label, target in targets.items()]
    trials, epochs = (np.array([math.inf if one is None else one[part] for one in found]) for part in (0, 1))
    half = [float(np.quantile(values, 0.5, method="higher")) for values in (trials, epochs)]
    return {
        "reached": float(np.mean(np.isfinite(trials))),
        "trials": None if math.isinf(half[0]) else int(half[0]),
        "epochs": None if math.isinf(half[1]) else half[1],
    }


def seeds_needed(tests: int) -> int:
    """Pairs below which so many tests cannot find anything: even all wins stay above p = 0.05 then.

    The least two-sided p of n pairs is 2^(1 - n), and Holm's correction multiplies the least of all by their number.
    """
    return math.ceil(1 + math.log2(max(1, tests) / SIGNIFICANT))


def paired(finals: Mapping[str, Mapping[str, Array]]) -> dict[str, list[dict[str, Any]]]:
    """Wilcoxon's signed-rank test for each two variants in each box, over the seeds that both ran.

    Args:
        finals: by box and variant, hypervolume at the end of each seed.

    Returns:
        By box for each pair ``first``, ``second``, ``difference`` (mean of first less second), ``wins`` (seeds in which
        first is better), ``pairs``, ``p`` (two-sided, by Holm's correction for all tests of all boxes together).
    """
    found = {box: _tested(of_box) for box, of_box in finals.items()}
    rows = [row for of_box in found.values() for row in of_box]
    worst = 0.0
    for rank, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        worst = max(worst, min(1.0, row["p"] * (len(rows) - rank)))
        row["p"] = worst
    return found


def _tested(finals: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The tests of one box, not corrected."""
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(finals, 2):
        differences = finals[first] - finals[second]
        p = 1.0 if not np.any(differences) else float(wilcoxon(differences, zero_method="zsplit").pvalue)
        rows.append(
            {
                "first": first,
                "second": second,
                "difference": float(differences.mean()),
                "wins": int(np.sum(differences > 0)),
                "pairs": len(differences),
                "p": p,
            }
        )
    return rows
