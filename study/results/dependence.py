"""How ASR and clean accuracy depend on two parameters, whatever the others are: partial dependence (Friedman 2001)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search_spaces.space import Space
from study.record.columns import PARAM
from study.results.searched_params import by_logarithm, searched_params, varies

RATES = ("asr", "clean_accuracy")
VALUES = 15  # of each parameter
MOST = 200  # settings whose other parameters are averaged over
FEWEST = 20  # settings below which a forest would draw its own noise
TREES = 100
Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairDependence:
    """Partial dependence of one search's rates on two of its parameters.

    Args:
        names: of the parameters.
        logs: whether each is on a logarithmic scale.
        values: of each, ascending.
        rates: `RATES` -> means over the settings, (values of the first, values of the second).
        measured: the parameters of the settings themselves, (settings, 2).
        error: mean absolute error of either rate on settings that the forest did not learn from, as in `rates`.
    """

    names: tuple[str, str]
    logs: tuple[bool, bool]
    values: tuple[Array, Array]
    rates: dict[str, Array]
    measured: Array
    error: dict[str, float]


def partial_means(
    predict: Callable[[Array], Array], x: Array, columns: Sequence[int], places: Sequence[Sequence[float]]
) -> Array:
    """What ``predict`` says at each place of these columns, the mean over the rows ``x`` in all others.

    Args:
        predict: (rows, columns) -> (rows, outputs).
        places: values of ``columns``.

    Returns:
        (places, outputs).
    """
    rows = np.tile(x, (len(places), 1))
    rows[:, list(columns)] = np.repeat(np.asarray(places, dtype=float), len(x), axis=0)
    each = predict(rows)
    return np.asarray(each.reshape(len(places), len(x), each.shape[1]).mean(axis=1), dtype=np.float64)


def pair_dependence(searched: pd.DataFrame, ranked: Sequence[str], space: Space | None = None) -> PairDependence | None:
    """Of the first two of ``ranked`` that are numbers and that all settings have; None where there are not two.

    Args:
        searched: all finished settings of one search, rows of `settings.candidates`; report-half values are shown, a
            collapsed model as the worst there is.
        ranked: names of parameters, the one that matters most first.
        space: see `searched_params`.
    """
    if len(searched) < FEWEST:
        return None
    params, has = searched_params(searched, space)
    columns: dict[str, Array] = {}
    logs: dict[str, bool] = {}
    for column in params.columns:
        if not has[column].all() or not varies(params[column]):
            continue
        name, values = column[len(PARAM) :], params[column].tolist()
        if all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values):
            numbers = np.asarray(values, dtype=float)
            logs[name] = by_logarithm(values)
            columns[name] = np.log(numbers) if logs[name] else numbers
        else:
            words = [str(value) for value in values]
            columns |= {f"{name}={word}": np.asarray([one == word for one in words], float) for word in set(words)}
    chosen = [name for name in ranked if name in logs][:2]
    if len(chosen) < 2:
        return None
    names = sorted(columns)
    x = np.column_stack([columns[name] for name in names])
    y = searched[["asr_told", "clean_accuracy_told"]].to_numpy(dtype=float)
    predict, error = _forest(x, y)
    at = [np.linspace(columns[name].min(), columns[name].max(), VALUES) for name in chosen]
    places = [names.index(name) for name in chosen]
    means = partial_means(predict, x[:MOST], places, list(itertools.product(*at)))
    plain = [np.exp(one) if logs[name] else one for name, one in zip(chosen, at, strict=True)]
    measured = [np.exp(columns[name]) if logs[name] else columns[name] for name in chosen]
    return PairDependence(
        names=(chosen[0], chosen[1]),
        logs=(logs[chosen[0]], logs[chosen[1]]),
        values=(plain[0], plain[1]),
        rates={rate: means[:, place].reshape(VALUES, VALUES) for place, rate in enumerate(RATES)},
        measured=np.column_stack(measured),
        error=dict(zip(RATES, error, strict=True)),
    )


def _forest(x: Array, y: Array) -> tuple[Callable[[Array], Array], list[float]]:
    """Extremely randomised trees, and their mean absolute error in 5-fold cross-validation."""
    from sklearn.ensemble import ExtraTreesRegressor  # here, because it is slow to import and only reports need it
    from sklearn.model_selection import KFold, cross_val_predict

    centre, scale = y.mean(axis=0), np.maximum(y.std(axis=0), 1e-9)  # one scale: a cut serves both
    forest = ExtraTreesRegressor(TREES, random_state=0)
    scaled = (y - centre) / scale
    held_out = cross_val_predict(forest, x, scaled, cv=KFold(5, shuffle=True, random_state=0)) * scale + centre
    forest.fit(x, scaled)

    def predict(rows: Array) -> Array:
        found: Any = forest.predict(rows)
        return np.asarray(found * scale + centre, dtype=np.float64)

    return predict, [float(value) for value in np.abs(held_out - y).mean(axis=0)]
