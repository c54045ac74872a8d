"""What may be tuned, one file per defense: SPACE (Optuna distributions) and PAPER (the published point, trial 0).

A file may also hold ``to_settings(params)`` and ``to_params(settings)`` where the searched parameters are not the
settings themselves, and ``VARIANTS``: further spaces by name.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from trainables.registry import SettingError, nearest

Settings = dict[str, Any]


def _same(values: Mapping[str, Any]) -> Settings:
    return dict(values)


@dataclass(frozen=True)
class Space:
    """The searched parameters of one defense.

    Args:
        distributions: name -> Optuna distribution.
        paper: the published point, as settings of the defense.
        to_settings: parameters -> settings of the defense.
        to_params: settings -> parameters, its inverse on the space.
    """

    distributions: Mapping[str, BaseDistribution]
    paper: Mapping[str, Any]
    to_settings: Callable[[Mapping[str, Any]], Settings] = _same
    to_params: Callable[[Mapping[str, Any]], Settings] = _same

    def paper_params(self) -> Settings:
        """The published point as searched parameters; what it states beside them is the defense's default."""
        params = self.to_params(self.paper)
        return {name: params[name] for name in self.distributions}

    def with_ranges(self, ranges: Mapping[str, Sequence[Any]], key: str) -> Space:
        """The space with other bounds (``[low, high]``) or choices for some parameters.

        Args:
            ranges: by parameter.
            key: where they were given, for messages.

        Raises:
            SettingError: unknown parameter, no such range, or one that leaves out the published point (trial 0).
        """
        changed = dict(self.distributions)
        for name, given in ranges.items():
            if name not in changed:
                raise SettingError(f"unknown parameter {key}.{name}: {nearest(name, changed)}")
            try:
                changed[name] = _other_range(changed[name], given)
            except (TypeError, ValueError) as error:
                raise SettingError(f"{key}.{name}: {error}") from error
            published = self.to_params(self.paper)[name]
            if not _holds(changed[name], published):
                raise SettingError(
                    f"{key}.{name}: {list(given)} leaves out the published {published}, which is trial 0"
                )
        return dataclasses.replace(self, distributions=changed)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution._contains(distribution.to_internal_repr(value))


def _other_range(distribution: BaseDistribution, given: Sequence[Any]) -> BaseDistribution:
    if isinstance(distribution, CategoricalDistribution):
        if not given:
            raise ValueError("must name at least one choice, got []")
        return CategoricalDistribution(list(given))
    if not isinstance(distribution, FloatDistribution | IntDistribution) or len(given) != 2:
        raise ValueError(f"must be [low, high], got {list(given)}")
    low, high = given
    whole = isinstance(distribution, IntDistribution)
    for bound in given:
        if isinstance(bound, bool) or not isinstance(bound, int if whole else int | float) or not math.isfinite(bound):
            raise ValueError(f"must be two {'whole ' if whole else ''}numbers [low, high], got {list(given)}")
    if low > high or (distribution.log and low <= 0):
        raise ValueError(f"must be [low, high] with {'0 < ' if distribution.log else ''}low <= high, got {list(given)}")
    if whole:
        return IntDistribution(low, high, log=distribution.log)
    return FloatDistribution(float(low), float(high), log=distribution.log)


def names() -> list[str]:
    """Defenses that have a search space, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def paper_point(defense: str) -> Mapping[str, Any]:
    """The published settings of a defense; empty for one without a search space."""
    if defense not in names():
        return MappingProxyType({})
    return MappingProxyType(dict(importlib.import_module(f"search_spaces.{defense}").PAPER))


def get_space(defense: str, variant: str = "default") -> Space:
    """The search space of a defense.

    Raises:
        SettingError: the defense has none, or none of that name.
    """
    if defense not in names():
        raise SettingError(
            f"defense {defense!r} has no search space, so it cannot be searched: {nearest(defense, names())}"
        )
    module = importlib.import_module(f"search_spaces.{defense}")
    variants: dict[str, Space] = {"default": Space(module.SPACE, module.PAPER), **getattr(module, "VARIANTS", {})}
    if variant not in variants:
        raise SettingError(f"unknown search.space.{defense} {variant!r}: {nearest(variant, variants)}")
    return variants[variant]
