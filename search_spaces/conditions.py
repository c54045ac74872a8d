"""Parameters that only some points of a search space have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

Distributions = Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class OnlyIf:
    """A point has the parameter only if another one, which stands before it in the space, has one of these values.

    Args:
        parameter: a categorical one. Where a point does not have it, it does not have this one either.
        among: some of its choices.
    """

    parameter: str
    among: tuple[Any, ...]

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether it does for a point of which all parameters before this one are known."""
        return self.parameter in params and params[self.parameter] in self.among


# Name -> conditions of a parameter, all of which must hold; a parameter without any belongs to every point.
Conditions = Mapping[str, tuple[OnlyIf, ...]]


def walk(
    distributions: Distributions, conditions: Conditions, value: Callable[[str, BaseDistribution], Any]
) -> dict[str, Any]:
    """A point, parameter by parameter in the order of the space; ``value`` is asked for those that the point has."""
    params: dict[str, Any] = {}
    for name, item in distributions.items():
        if all(one.holds(params) for one in conditions.get(name, ())):
            params[name] = value(name, item)
    return params


def names_of(distributions: Distributions, conditions: Conditions, params: Mapping[str, Any]) -> list[str]:
    """The parameters that a point has or, where it is known in part, is known to have."""
    seen: dict[str, Any] = {}
    found = []
    for name in distributions:
        if all(one.holds(seen) for one in conditions.get(name, ())):
            found.append(name)
            if name in params:
                seen[name] = params[name]
    return found


def wrong_conditions(distributions: Distributions, conditions: Conditions) -> str:
    """What is wrong with the conditions of a space, in words; nothing where they can be walked."""
    order = list(distributions)
    for name, needed in conditions.items():
        if name not in order:
            return f"a condition names {name!r}, which is not searched"
        for one in needed:
            parent = distributions.get(one.parameter)
            if one.parameter not in order[: order.index(name)]:
                return f"{name} depends on {one.parameter!r}, which must stand before it"
            if not isinstance(parent, CategoricalDistribution):
                return f"{name} depends on {one.parameter}, which must be a choice, not {parent}"
    return ""
