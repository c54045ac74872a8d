"""How ASR and clean accuracy depend on two parameters, whatever the others are: partial dependence (Friedman 2001)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from study.results.dependence import VALUES, partial_means
from study.simulate.surrogate import RATES, Surrogate
from study.simulate.table import Table

SETTINGS = 200  # of the table whose other parameters are averaged over


@dataclass(frozen=True)
class Dependence:
    """Partial dependence on two parameters.

    Args:
        names: of the parameters: the two that move the ASR most, the stronger one first.
        values: of each, ascending, on its own scale.
        rates: attack -> `RATES` -> means over the table's settings, (values of the first, values of the second).
    """

    names: tuple[str, str]
    values: tuple[list[float], list[float]]
    rates: Mapping[str, Mapping[str, NDArray[np.float64]]]


def dependence(table: Table, surrogates: Mapping[str, Surrogate]) -> Dependence | None:
    """Of the two numbers among the parameters that move the ASR most; None where there are not two."""
    columns = _columns(table)
    if len(columns) < 2:
        return None
    settings = {attack: table.encoded(table.means(attack).iloc[:SETTINGS]) for attack in surrogates}
    at = np.linspace(0.0, 1.0, VALUES)

    def moved(column: int) -> float:
        """How far the mean ASR moves along one parameter, over all attacks."""
        return sum(
            float(np.ptp(_means(one, settings[attack], (column,), [(value,) for value in at])[:, 0]))
            for attack, one in surrogates.items()
        )

    first, second = sorted(columns, key=lambda name: -moved(columns[name]))[:2]
    places = list(itertools.product(at, at))
    rates = {}
    for attack, one in surrogates.items():
        means = _means(one, settings[attack], (columns[first], columns[second]), places)
        rates[attack] = {name: means[:, place].reshape(VALUES, VALUES) for place, name in enumerate(RATES)}
    return Dependence((first, second), (_decoded(table.space[first], at), _decoded(table.space[second], at)), rates)


def _columns(table: Table) -> dict[str, int]:
    """Coordinate in the unit cube of each parameter that is a number and takes more than one value."""
    found, column = {}, 0
    for name, item in table.space.items():
        if isinstance(item, CategoricalDistribution):
            column += len(item.choices)
            continue
        if item.low < item.high:  # type: ignore[attr-defined]
            found[name] = column
        column += 1
    return found


def _means(one: Surrogate, x: NDArray[np.float64], columns: tuple[int, ...], places: Any) -> NDArray[np.float64]:
    """`RATES` at each place of these coordinates, the mean over the settings ``x``: (places, 2)."""
    return partial_means(one.rates, x, columns, places)


def _decoded(item: BaseDistribution, at: NDArray[np.float64]) -> list[float]:
    low, high = float(item.low), float(item.high)  # type: ignore[attr-defined]
    if item.log:  # type: ignore[attr-defined]
        return [float(value) for value in low * (high / low) ** at]
    return [float(value) for value in low + (high - low) * at]
