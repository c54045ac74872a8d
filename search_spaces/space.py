"""A search space, and the spaces that there are by the name of their defense.

A space is an object with SPACE and PAPER, with VARIANTS where there are several, with PAPER_FOR where the source states
points for several data sets, and with DETECTOR where some of its parameters can be tuned first: a module of this
package, named after its defense, or a class of a plug-in with ``@register("DEFENSE")`` above it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType, ModuleType
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import Conditions, names_of, walk, wrong_conditions
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, SettingError, nearest

Settings = dict[str, Any]
LARGEST_SPACE = 10_000  # points up to which a space is counted; a larger one is not used up

# The data set that PAPER is the point for, where PAPER_FOR says what other data sets have.
PAPER_DATASET = "cifar10"
# Modules of this package that hold no space.
HELPERS = ("space", "steps", "conditions", "schedule_family")


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
        published_for: the data set that the published point was stated for; empty where the space does not say.
        detector: the parameters that decide what a defense that `detects` leaves out, and nothing else. They are
            settings by themselves: such a space has no ``to_settings`` of its own.
        conditions: which parameters only some points have. ``to_settings`` takes no notice of one that a point does not
            have and leaves out the settings that then mean nothing; ``to_params`` fills in what settings leave out.
        starts: further points that a search begins with after the published one, by name, as parameters.
    """

    distributions: Mapping[str, BaseDistribution]
    paper: Mapping[str, Any]
    to_settings: Callable[[Mapping[str, Any]], Settings] = _same
    to_params: Callable[[Mapping[str, Any]], Settings] = _same
    published_for: str = ""
    detector: tuple[str, ...] = ()
    conditions: Conditions = field(default_factory=dict)
    starts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def walk(self, value: Callable[[str, BaseDistribution], Any]) -> Settings:
        """A point, parameter by parameter; ``value`` is asked for those that it has. See `conditions.walk`."""
        return walk(self.distributions, self.conditions, value)

    def names_of(self, params: Mapping[str, Any]) -> list[str]:
        """The parameters of a point; all of them where the space has no conditions."""
        return names_of(self.distributions, self.conditions, params)

    def params_of(self, settings: Mapping[str, Any]) -> Settings:
        """The parameters of settings, those alone that such a point has (KeyError: the settings lack one)."""
        params = self.to_params(settings)
        return {name: params[name] for name in self.names_of(params)}

    def filled(self, params: Mapping[str, Any]) -> Settings:
        """A point with some parameters as given, all others as published or, where that point lacks them, the least."""
        published = self.to_params(self.paper)

        def value(name: str, item: BaseDistribution) -> Any:
            return params[name] if name in params else published.get(name, _ends(item)[0])

        return self.walk(value)

    def regimes(self) -> list[Settings]:
        """A point for each combination of the choices that decide which parameters a point has; at least one point."""
        parents = dict.fromkeys(one.parameter for needed in self.conditions.values() for one in needed)
        choices = [self.distributions[name].choices for name in parents]  # type: ignore[attr-defined]
        return [self.filled(dict(zip(parents, values, strict=True))) for values in itertools.product(*choices)]

    @cached_property
    def decides(self) -> tuple[str, ...]:
        """The settings that a point of it may state."""
        return tuple(dict.fromkeys(key for params in self.regimes() for key in self.to_settings(params)))

    def starting_points(self) -> dict[str, Settings]:
        """`starts` within the ranges: a number outside goes to the nearer end, a point that lacks its choice is left
        out."""
        found = {}
        for name, params in self.starts.items():
            moved = {key: _nearest(params[key], self.distributions[key]) for key in self.names_of(params)}
            if all(holds(self.distributions[key], value) for key, value in moved.items()):
                found[name] = moved
        return found

    def split(self) -> tuple[Space, Space] | None:
        """The space of the detector and that of all other parameters; None where not both hold more than one point.

        The settings of a point of the whole are those of both points together.
        """
        inside = {name: item for name, item in self.distributions.items() if name in self.detector}
        outside = {name: item for name, item in self.distributions.items() if name not in self.detector}
        first, second = (dataclasses.replace(self, distributions=part, detector=()) for part in (inside, outside))
        return (first, second) if first.size > 1 and second.size > 1 else None

    def paper_params(self) -> Settings:
        """The published point as searched parameters; what it states beside them is in `beside`."""
        return self.params_of(self.paper)

    def beside(self, defense: str) -> Settings:
        """What the published point states beside the searched parameters, where it is not the defense's default."""
        searched = self.to_settings(self.paper_params())
        defaults = {field.name: field.default for field in dataclasses.fields(DEFENSES.get(defense))}
        return {
            key: value
            for key, value in self.paper.items()
            if key not in searched and not (key in defaults and defaults[key] == value)
        }

    @cached_property
    def size(self) -> float:
        """Different settings in it; infinite where there are more than LARGEST_SPACE points, or a continuous range."""
        choices = {name: points(item) for name, item in self.distributions.items()}
        size = math.prod(map(len, choices.values()))
        if not 0 < size <= LARGEST_SPACE:
            return math.inf
        different = set()
        for number in range(size):
            params = {}
            for name, values in choices.items():
                number, index = divmod(number, len(values))
                params[name] = values[index]
            different.add(fingerprint(self.to_settings({key: params[key] for key in self.names_of(params)})))
        return len(different)

    def with_ranges(self, ranges: Mapping[str, Sequence[Any]], key: str, *, published: bool = True) -> Space:
        """The space with other bounds (``[low, high]``) or choices for some parameters.

        Args:
            ranges: by parameter.
            key: where they were given, for messages.
            published: whether the published point, which is trial 0, must lie in it.

        Raises:
            SettingError: unknown parameter, no such range, or one that leaves out a published point that must be in it.
        """
        changed = dict(self.distributions)
        for name, given in ranges.items():
            if name not in changed:
                raise SettingError(f"unknown parameter {key}.{name}: {nearest(name, changed)}")
            try:
                changed[name] = _other_range(changed[name], given)
            except (TypeError, ValueError) as error:
                raise SettingError(f"{key}.{name}: {error}") from error
            paper = self.paper_params()
            if published and name in paper and not holds(changed[name], paper[name]):
                raise SettingError(
                    f"{key}.{name}: {list(given)} leaves out the published {paper[name]}, which is trial 0; "
                    "search.published: false searches without it"
                )
        return dataclasses.replace(self, distributions=changed)


def points(distribution: BaseDistribution) -> Sequence[Any]:
    """All values of a distribution; none of a continuous one, or of one that has too many by itself."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution) and distribution.high - distribution.low < LARGEST_SPACE:
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.low == distribution.high:
        return [distribution.low]
    if isinstance(distribution, FloatDistribution) and distribution.step:
        steps = round((distribution.high - distribution.low) / distribution.step)
        return [distribution.low + i * distribution.step for i in range(steps + 1)] if steps < LARGEST_SPACE else []
    return []


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Equal for equal settings, also when one was written as 1 and read as 1.0."""
    plain = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in settings.items()
    }
    return json.dumps(plain, sort_keys=True, default=str)


def within(value: Any, distribution: BaseDistribution) -> Any:
    """A number of a continuous range, put back into it where it lies outside; anything else as it is."""
    if isinstance(distribution, FloatDistribution):
        return min(max(value, distribution.low), distribution.high)
    return value


def nearest_within(value: Any, distribution: BaseDistribution) -> Any:
    """The value of a distribution that comes nearest to one that may lie outside; of choices the first."""
    if holds(distribution, value):
        return value
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return min(max(value, distribution.low), distribution.high)


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a range, or is one of the choices."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return distribution._contains(distribution.to_internal_repr(value))


def _ends(item: BaseDistribution) -> Sequence[Any]:
    """All choices, or the least and the greatest value."""
    return item.choices if isinstance(item, CategoricalDistribution) else (item.low, item.high)  # type: ignore[attr-defined]


def _nearest(value: Any, item: BaseDistribution) -> Any:
    return value if isinstance(item, CategoricalDistribution) else min(max(value, item.low), item.high)  # type: ignore[attr-defined]


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
    return FloatDistribution(float(low), float(high), log=distribution.log, step=distribution.step)


def _check(defense: str, holder: Any) -> None:
    """Refuse what is no search space (SettingError)."""
    for key in ("SPACE", "PAPER"):
        if not isinstance(getattr(holder, key, None), Mapping):
            raise SettingError(f"search space of {defense} has no {key}: a mapping by the defense's settings")
    for name, item in holder.SPACE.items():
        if not isinstance(item, BaseDistribution):
            raise SettingError(
                f"search space of {defense}: SPACE[{name!r}] must be an Optuna distribution, got {item!r}"
            )
    for name in getattr(holder, "DETECTOR", ()):
        if name not in holder.SPACE:
            raise SettingError(f"search space of {defense}: DETECTOR names {name!r}, which SPACE does not search")
    for variant, dataset in itertools.product(_variants(holder), (None, *getattr(holder, "PAPER_FOR", {}))):
        space = _space_of(holder, variant, dataset)
        if wrong := wrong_conditions(space.distributions, space.conditions):
            raise SettingError(f"search space of {defense} ({variant}): {wrong}")
        if space.detector and (space.conditions or space.starts):
            raise SettingError(f"search space of {defense} ({variant}): one with conditions or starts has no detector")
        try:
            params = space.paper_params()
        except Exception as error:
            missing = f"PAPER has no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            raise SettingError(f"search space of {defense} ({variant}): {missing}, but SPACE searches it") from error
        where = f" for {dataset}" if dataset else ""
        for name, value in params.items():
            if not holds(space.distributions[name], value):
                raise SettingError(
                    f"search space of {defense} ({variant}): PAPER[{name!r}] = {value!r}{where} lies outside "
                    f"{space.distributions[name]}; the published point is trial 0"
                )
        for name, start in space.starts.items():
            lacking = [key for key in space.names_of(start) if key not in start]
            if lacking or space.starting_points().get(name) != dict(start):
                what = f"has no {lacking[0]}" if lacking else "is no point of it"
                raise SettingError(f"search space of {defense} ({variant}): the start {name!r} {what}")


def _variants(holder: Any) -> dict[str, Space]:
    default = Space(holder.SPACE, holder.PAPER, detector=tuple(getattr(holder, "DETECTOR", ())))
    return {"default": default, **getattr(holder, "VARIANTS", {})}


def _space_of(holder: Any, variant: str, dataset: str | None) -> Space:
    space, others = _variants(holder)[variant], getattr(holder, "PAPER_FOR", None)
    if others is None:
        return space
    if dataset is None or dataset not in others:
        return dataclasses.replace(space, published_for=PAPER_DATASET)
    return dataclasses.replace(space, paper={**space.paper, **others[dataset]}, published_for=dataset)


def _adopt(module: ModuleType, name: str) -> None:
    if name not in HELPERS:
        SPACES.add(name, module, by=module.__name__)


SPACES: Registry[Any] = Registry("search space", "search_spaces", check=_check, adopt=_adopt)
register = SPACES.register


def names() -> list[str]:
    """Defenses that have a search space, sorted."""
    return SPACES.names()


def paper_point(defense: str, dataset: str | None = None) -> Mapping[str, Any]:
    """The published settings of a defense for a data set, see `get_space`; empty for one without a search space."""
    return MappingProxyType(dict(get_space(defense, dataset=dataset).paper) if defense in SPACES else {})


def published_for(defense: str, dataset: str) -> str:
    """The data set that `paper_point` was stated for; empty where the space does not say, or there is none."""
    return get_space(defense, dataset=dataset).published_for if defense in SPACES else ""


def get_space(defense: str, variant: str = "default", dataset: str | None = None) -> Space:
    """The search space of a defense, around the published point for a data set.

    Args:
        dataset: registered name; the point for CIFAR-10 where the source states none for it (`Space.published_for`).

    Raises:
        SettingError: the defense has none, or none of that name.
    """
    if defense not in SPACES:
        raise SettingError(
            f"defense {defense!r} has no search space, so it cannot be searched: {nearest(defense, names())}"
        )
    variants = _variants(SPACES.get(defense))
    if variant not in variants:
        raise SettingError(f"unknown search.space.{defense} {variant!r}: {nearest(variant, variants)}")
    return _space_of(SPACES.get(defense), variant, dataset)


def check_space(
    defense: str, space: Space, fixed: Mapping[str, Any], given: Mapping[str, Sequence[Any]], key: str
) -> None:
    """Refuse a space with points that the defense would refuse in a trial: the published one, and both ends of each.

    Args:
        fixed: settings of the defense beside the searched ones.
        given: ranges that the user chose, by parameter; named by ``key`` where it is they that do not work.

    Raises:
        SettingError: one line that names parameter and value.
    """

    published = space.to_params(space.paper)

    def attempt(what: str, params: Mapping[str, Any]) -> None:
        try:
            DEFENSES.create(defense, {**fixed, **space.to_settings({**published, **params})})
        except SettingError as error:
            raise SettingError(f"{what} does not work: {error}") from error

    attempt(f"search space of {defense}: the published point", {})
    for name, start in space.starting_points().items():
        attempt(f"search space of {defense}: the starting point {name}", start)
    for regime in space.regimes():
        for name in regime:
            for value in _ends(space.distributions[name]):
                where = f"{key}.{name}" if name in given else f"search space of {defense}: {name}"
                attempt(f"{where}: {value!r}", space.filled({**regime, name: value}))
