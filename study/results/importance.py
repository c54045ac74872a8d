"""Which settings mattered: parameter importance of finished trials, computed by Optuna.

fANOVA (Hutter et al. 2014) answers for ASR and for clean accuracy: which share of the variation over all trials does
a setting explain? PED-ANOVA (Watanabe et al. 2023) answers for the front: by how much do the values of the settings
differ between the trials on the front (at least the best 10 % by non-domination rank) and all others? A parameter that
only some settings have is judged among those.
"""

from __future__ import annotations

import bisect
import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from search_spaces.space import Space
from study.record.columns import PARAM
from study.results.scores import WORST
from study.results.searched_params import by_logarithm, searched_params, varies

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator
    from optuna.study import Study

TARGETS = {"asr": "ASR", "clean_accuracy": "clean accuracy", "front": "reaching the front"}
MIN_TRIALS = 4  # below this there is nothing to compute
TRUSTED_TRIALS = 100  # below this an order of settings is a hint
MANY_TRIALS = 1000
# Settings from which on, and up to which, the shares have intervals: fewer are too few for any, and of more the report
# takes too long.
LEAST_RESAMPLED, MOST_RESAMPLED = 20, 200
RESAMPLES, CHANCE_COLUMNS = 40, 4
CHANCE = "chance"  # a column of random numbers, drawn anew for every tenth resample


@dataclass(frozen=True)
class Branch:
    """A parameter that only some settings have, judged among those alone.

    Args:
        trials: how many have it.
        shares: TARGETS key -> the share that it explains of what differs among them, in [0, 1].
        told: the targets of which it explains more than a shuffled column; empty where that was not asked.
    """

    trials: int
    shares: dict[str, float]
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Importance:
    """Importance of the settings of one defense on one attack.

    Args:
        trials: how many settings went in.
        shares: TARGETS key -> setting -> share in [0, 1]; the shares of one target add up to 1. Empty if impossible.
        notes: sentences for people: why something is missing, or how far to trust it.
        intervals: the same -> where 90 % of `RESAMPLES` resamples of the settings have the share; empty for fewer than
            `LEAST_RESAMPLED` settings and for more than `MOST_RESAMPLED`.
        told: TARGETS key -> the settings whose share is larger than that of a column of random numbers in 95 % of the
            resamples; of what is not among them that cannot be told. Empty where there are no intervals.
        branches: parameter that only some settings have -> what it is among those.
    """

    trials: int
    shares: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    branches: dict[str, Branch] = field(default_factory=dict)


def importance(settings: pd.DataFrame, space: Space | None = None) -> Importance:
    """Importance over finished settings (rows of ``settings.candidates`` of one group), from their report-half values.

    Settings with a collapsed model are on no front, and are left out where ASR and clean accuracy are explained.

    Args:
        space: what was searched, where some of its parameters belong to some settings alone: then the parameters are
            judged, and those among the settings that have them. None: the settings of the defense are, as they stand
            in the rows, and those that are missing in some rows are left out.
    """
    n = len(settings)
    if n < MIN_TRIALS:
        return Importance(
            n, {}, (f"Importance needs at least {MIN_TRIALS} finished settings; there {_are(n)} so far.",)
        )
    params, has = searched_params(settings, space)
    columns = list(map(str, params.columns))
    partial = [c for c in columns if has[c].any() and not has[c].all()]
    varied = [c for c in columns if has[c].all() and varies(params[c])]
    notes = []
    if partial and space is None:
        notes.append(f"Left out, because only some settings have them: {_names(partial)}.")
    if not varied:
        return Importance(n, {}, (*notes, "No parameter took more than one value, so none can explain a difference."))
    if n < TRUSTED_TRIALS:
        notes.append(
            f"Only {n} settings: fewer than {TRUSTED_TRIALS}, so take the order of the bars as a hint, not as a result."
        )
    places = settings[["asr_search", "clean_accuracy_search"]].to_numpy(dtype=float, copy=True)
    places[settings["collapsed"].to_numpy(dtype=bool)] = WORST  # on no front, though its ASR may be 0 by accident
    # What a ruined model's rates are explains nothing of the others', and one of them would outweigh all these.
    sound = settings[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float, copy=True)
    sound[settings["collapsed"].to_numpy(dtype=bool)] = np.nan
    if ruined := int(settings["collapsed"].sum()):
        one = "setting collapsed and is" if ruined == 1 else "settings collapsed and are"
        notes.append(f"{ruined} {one} left out of ASR and clean accuracy, and on no front.")
    targets = {"asr": sound[:, 0], "clean_accuracy": sound[:, 1], "front": _domination_rank(places)}
    unequal = {name: values for name, values in targets.items() if _spread(values) > 0}
    evaluated = _evaluate(params[varied], unequal)
    shares: dict[str, dict[str, float]] = {}
    for name in targets:
        if name not in unequal:
            notes.append(f"All settings are equal in {TARGETS[name]}, so nothing can explain a difference.")
        elif found := evaluated[name]:
            shares[name] = found
        else:
            notes.append(f"No parameter explains any of the differences in {TARGETS[name]}.")
    intervals, told = _resampled(params[varied], {name: unequal[name] for name in shares})
    branches = _branches(params, has, varied, partial, unequal) if space is not None else {}
    return Importance(n, shares, tuple(notes), intervals, told, branches)


def _branches(
    params: pd.DataFrame,
    has: pd.DataFrame,
    varied: list[str],
    partial: list[str],
    targets: Mapping[str, np.ndarray[Any, Any]],
) -> dict[str, Branch]:
    """Each parameter that only some settings have, among those and beside what all of them have."""
    found: dict[str, Branch] = {}
    for column in partial:
        own = has[column].to_numpy(dtype=bool)
        if own.sum() < MIN_TRIALS or column[len(PARAM) :] in found:
            continue
        beside = [c for c in (*varied, *partial) if has.loc[own, c].all() and varies(params.loc[own, c])]
        # Those that the very same settings have are judged with it.
        alike = [c for c in partial if c in beside and (has[c].to_numpy(dtype=bool) == own).all()]
        values = {name: one[own] for name, one in targets.items() if _spread(one[own]) > 0}
        shares = _evaluate(params.loc[own, beside], values) if alike else {}
        _, told = _resampled(params.loc[own, beside], {name: values[name] for name in shares if shares[name]})
        for name in (c[len(PARAM) :] for c in alike):
            explained = {target: by_name[name] for target, by_name in shares.items() if name in by_name}
            above = tuple(target for target in explained if name in told.get(target, ()))
            found[name] = Branch(int(own.sum()), explained, above)
    return found


def _resampled(
    params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, tuple[str, ...]]]:
    """Intervals of the shares, and which of them are larger than that of a column of random numbers; see `Importance`.

    Each tree of fANOVA's forest learns from settings drawn with replacement, and the share is the mean over the trees:
    so single trees are the resamples. For PED-ANOVA the settings are drawn here.
    """
    n = len(params)
    if not LEAST_RESAMPLED <= n <= MOST_RESAMPLED or not targets:
        return {}, {}
    draws = np.random.default_rng(0)
    names = [column[len(PARAM) :] for column in params.columns]
    drawn: dict[str, list[dict[str, float]]] = {target: [] for target in targets}
    for number in range(CHANCE_COLUMNS):
        beside = params.assign(**{f"{PARAM}{CHANCE}": draws.uniform(size=n)})
        seeds = [number * RESAMPLES + seed for seed in range(RESAMPLES // CHANCE_COLUMNS)]
        explained = {target: values for target, values in targets.items() if target != "front"}
        for _ in seeds if "front" in targets else ():
            rows = draws.integers(n, size=n)
            if np.ptp(targets["front"][rows]) > 0:
                drawn["front"].append(_evaluate(beside.iloc[rows], {"front": targets["front"][rows]})["front"])
        for target, lists in _trees(beside, explained, seeds).items():
            drawn[target] += lists
    intervals, told = {}, {}
    for target, lists in drawn.items():
        every = np.asarray([[shares.get(name, 0.0) for name in (*names, CHANCE)] for shares in lists if shares])
        if len(every) < RESAMPLES // 2:  # nearly all settings are equal in it
            continue
        values, chance = every[:, :-1], every[:, -1:]
        whole = np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
        low, high = np.quantile(values / whole, (0.05, 0.95), axis=0)
        intervals[target] = {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
        above = (values > chance).mean(axis=0) >= 0.95
        told[target] = tuple(name for name, is_above in zip(names, above, strict=True) if is_above)
    return intervals, told


def _evaluate(params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, dict[str, float]]:
    """The shares of the parameters for each of the targets; none where they explain nothing."""
    found: dict[str, dict[str, float]] = {}
    with _quiet():
        for known, some in _by_rows(params, targets):
            study = _study(known, some)
            found |= {name: _shares(study, place, _evaluator(name, len(known))) for place, name in enumerate(some)}
    return found


def _trees(
    params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]], seeds: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    """The same by single trees, one of each seed."""
    found: dict[str, list[dict[str, float]]] = {}
    with _quiet():
        for known, some in _by_rows(params, targets):
            study = _study(known, some)
            found |= {
                name: [_shares(study, place, _evaluator(name, len(known), trees=1, seed=seed)) for seed in seeds]
                for place, name in enumerate(some)
            }
    return found


def _by_rows(
    params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]]
) -> Iterator[tuple[pd.DataFrame, dict[str, np.ndarray[Any, Any]]]]:
    """The settings whose targets are known, and these, once for all targets that are known of the same ones."""
    groups: dict[bytes, list[str]] = {}
    for name, values in targets.items():
        groups.setdefault(np.isnan(values).tobytes(), []).append(name)
    for names in groups.values():
        known = ~np.isnan(targets[names[0]])
        yield params[known], {name: targets[name][known] for name in names}


def _spread(values: np.ndarray[Any, Any]) -> float:
    """Greatest less least of the known values; 0 where none is known."""
    known = values[~np.isnan(values)]
    return float(np.ptp(known)) if len(known) else 0.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines."""
    import optuna  # here, because it is slow to import and only reports need it

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _study(params: pd.DataFrame, targets: Mapping[str, np.ndarray[Any, Any]]) -> Study:
    """One for all targets: entering the trials takes as long as a forest."""
    import optuna

    params = params.loc[:, [column for column in params.columns if varies(params[column])]]
    spaces = {column: _distribution(params[column].tolist()) for column in params.columns}
    study = optuna.create_study(directions=["minimize"] * len(targets))
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=dict(zip(spaces, row, strict=True)), distributions=spaces, values=list(map(float, values))
            )
            for row, *values in zip(params.itertuples(index=False, name=None), *targets.values(), strict=True)
        ]
    )
    return study


def _evaluator(target: str, count: int, trees: int = 32, seed: int = 0) -> BaseImportanceEvaluator:
    """What judges a target over ``count`` trials."""
    import optuna

    if target == "front":
        return optuna.importance.PedAnovaImportanceEvaluator()
    # Shallower trees than Optuna's 64 levels: at 1,000 trials 0.7 s instead of 10 s a target, same order. Beyond, where
    # trees fill all levels, two less: at 2,500 0.4 s instead of 1.6 s, shares within 0.01, same order.
    depth = 8 if count <= MANY_TRIALS else 6
    return optuna.importance.FanovaImportanceEvaluator(n_trees=trees, max_depth=depth, seed=seed)


def _shares(study: Study, place: int, evaluator: BaseImportanceEvaluator) -> dict[str, float]:
    """What the parameters explain of the value at ``place``."""
    import optuna

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

    if any(v is None or isinstance(v, bool | str) for v in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(values), max(values)
    log = by_logarithm(values)
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
