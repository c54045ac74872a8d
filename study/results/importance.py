"""Which settings mattered: parameter importance of finished trials, computed by Optuna.

fANOVA (Hutter et al. 2014) answers for ASR and for clean accuracy: which share of the variation over all trials does
a setting explain? PED-ANOVA (Watanabe et al. 2023) answers for the front: by how much do the values of the settings
differ between the trials on the front (at least the best 10 % by non-domination rank) and all others?
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from study.record.columns import PARAM

if TYPE_CHECKING:
    from optuna.study import Study

TARGETS = {"asr": "ASR", "clean_accuracy": "clean accuracy", "front": "reaching the front"}
MIN_TRIALS = 4  # below this there is nothing to compute
TRUSTED_TRIALS = 100  # below this an order of settings is a hint
MANY_TRIALS = 1000
WORST = (1.0, 0.0)  # ASR and clean accuracy
_LOG_RATIO = 10.0  # a positive setting that spans more than this was searched, and is compared, by its logarithm


@dataclass(frozen=True)
class Importance:
    """Importance of the settings of one defense on one attack.

    Args:
        trials: how many settings went in.
        shares: TARGETS key -> setting -> share in [0, 1]; the shares of one target add up to 1. Empty if impossible.
        notes: sentences for people: why something is missing, or how far to trust it.
    """

    trials: int
    shares: dict[str, dict[str, float]]
    notes: tuple[str, ...]


def importance(settings: pd.DataFrame) -> Importance:
    """Importance over finished settings (rows of ``front.candidates`` of one group), from their report-half values."""
    n = len(settings)
    if n < MIN_TRIALS:
        return Importance(
            n, {}, (f"Importance needs at least {MIN_TRIALS} finished settings; there {_are(n)} so far.",)
        )
    used = [c for c in settings.columns if c.startswith(PARAM) and settings[c].notna().any()]
    partial = [c for c in used if settings[c].isna().any()]
    varied = [c for c in used if c not in partial and settings[c].astype(str).nunique() > 1]
    notes = []
    if partial:
        notes.append(f"Left out, because only some settings have them: {_names(partial)}.")
    if not varied:
        return Importance(n, {}, (*notes, "No parameter took more than one value, so none can explain a difference."))
    if n < TRUSTED_TRIALS:
        notes.append(
            f"Only {n} settings: fewer than {TRUSTED_TRIALS}, so take the order of the bars as a hint, not as a result."
        )
    places = settings[["asr_search", "clean_accuracy_search"]].to_numpy(dtype=float)
    places[settings["collapsed"].to_numpy(dtype=bool)] = WORST  # on no front, though its ASR may be 0 by accident
    targets = {
        "asr": settings["asr_report"].to_numpy(dtype=float),
        "clean_accuracy": settings["clean_accuracy_report"].to_numpy(dtype=float),
        "front": _domination_rank(places),
    }
    unequal = {name: values for name, values in targets.items() if np.ptp(values) > 0}
    evaluated = _evaluate(settings[varied], unequal)
    shares: dict[str, dict[str, float]] = {}
    for name in targets:
        if name not in unequal:
            notes.append(f"All settings are equal in {TARGETS[name]}, so nothing can explain a difference.")
        elif found := evaluated[name]:
            shares[name] = found
        else:
            notes.append(f"No parameter explains any of the differences in {TARGETS[name]}.")
    return Importance(n, shares, tuple(notes))


def _evaluate(params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, float]]:
    """The shares of the parameters for each of the targets; none where they explain nothing."""
    import optuna  # here, because it is slow to import and only reports need it

    if not targets:
        return {}
    spaces = {column: _distribution(params[column].tolist()) for column in params.columns}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # One study for all targets: entering the trials takes as long as a forest.
        study = optuna.create_study(directions=["minimize"] * len(targets))
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(zip(spaces, row, strict=True)), distributions=spaces, values=list(map(float, values))
                )
                for row, *values in zip(params.itertuples(index=False, name=None), *targets.values(), strict=True)
            ]
        )
        return {name: _shares(study, place, len(params), by_rank=name == "front") for place, name in enumerate(targets)}
    finally:
        optuna.logging.set_verbosity(verbosity)


def _shares(study: Study, place: int, count: int, by_rank: bool) -> dict[str, float]:
    """What the parameters explain of the value at ``place``, over ``count`` trials."""
    import optuna

    evaluator: optuna.importance.BaseImportanceEvaluator
    if by_rank:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    else:
        # Shallower trees than Optuna's 64 levels: at 1,000 trials 0.7 s instead of 10 s a target, same order. Beyond,
        # where trees fill all levels, two less: at 2,500 0.4 s instead of 1.6 s, shares within 0.01, same order.
        depth = 8 if count <= MANY_TRIALS else 6
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, max_depth=depth, seed=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few trials per region: said in our own notes
            raw = optuna.importance.get_param_importances(
                study, evaluator=evaluator, normalize=False, target=lambda trial: trial.values[place]
            )
    except RuntimeError as error:
        if "zero total variance" not in str(error):  # fANOVA's forest found nothing to split on
            raise
        return {}
    total = sum(raw.values())
    return {name[len(PARAM) :]: float(share / total) for name, share in raw.items()} if total > 0 else {}


def _distribution(values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if any(isinstance(v, bool | str) for v in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(values), max(values)
    log = low > 0 and high / low > _LOG_RATIO
    if all(isinstance(v, int) for v in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _domination_rank(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """0 for the front, 1 for the front of the rest, and so on; equal points share a rank.

    In one pass, ASR ascending: a point is dominated by a front before it whose best accuracy so far is at least its
    own, and these accuracies fall from front to front, so a bisection finds its own (Jensen 2003).
    """
    unique, place = np.unique(points, axis=0, return_inverse=True)
    ranks = np.zeros(len(unique))
    least = list[float]()  # minus the best accuracy of each front so far, ascending
    for index in np.lexsort((-unique[:, 1], unique[:, 0])):
        loss = -float(unique[index, 1])
        rank = bisect.bisect_right(least, loss)
        least[rank : rank + 1] = [loss]
        ranks[index] = rank
    return ranks[place.reshape(-1)]


def _names(columns: list[str]) -> str:
    return ", ".join(column[len(PARAM) :] for column in columns)


def _are(n: int) -> str:
    return "is 1" if n == 1 else f"are {n}"
