"""What the search space of a defense must hold; a defense without one is not searched, and these say nothing."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from search_spaces import space as search_spaces
from search_spaces.space import Space
from superft.testing.defense_subject import Subject
from superft.testing.refusals import refusal
from trainables.defenses.base import DEFENSES
from trainables.registry import SettingError


def published_point_lies_in_the_search_space(subject: Subject) -> None:
    """PAPER names fields of the defense, which takes it, and each searched parameter of it lies in its range."""
    if (space := space_of(subject.name)) is None:
        return
    fields = {item.name for item in dataclasses.fields(DEFENSES.get(subject.name))}
    assert set(space.paper) <= fields, f"PAPER of {subject.name} names no field: {set(space.paper) - fields}"
    refused = refusal(partial(DEFENSES.create, subject.name, space.paper), SettingError)
    assert refused is None, f"PAPER of {subject.name} is refused by the defense: {refused}"
    params = space.to_params(space.paper)
    for name in space.names_of(params):
        assert name in params, f"SPACE of {subject.name} has {name}, but PAPER has no value for it"
        assert holds(space.distributions[name], params[name]), (
            f"PAPER of {subject.name}: {name}={params[name]} lies outside SPACE"
        )


def every_point_of_the_search_space_builds_the_defense(subject: Subject) -> None:
    """Corners and random points: the search must never meet a setting that the defense refuses."""
    if (space := space_of(subject.name)) is None:
        return
    for params in points(space, 50):
        refused = refusal(partial(DEFENSES.create, subject.name, space.to_settings(params)), SettingError)
        assert refused is None, f"SPACE of {subject.name} holds {params}, which the defense refuses: {refused}"


def space_of(defense: str) -> Space | None:
    """The default search space of a defense, if it has one."""
    return search_spaces.get_space(defense) if defense in search_spaces.names() else None


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in the range, or among the choices, of a distribution."""
    return distribution._contains(distribution.to_internal_repr(value))


def points(space: Space, count: int) -> list[dict[str, Any]]:
    """Parameters drawn at random, the corners of the space among them where they are few."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    drawn = [study.ask(dict(space.distributions)).params for _ in range(count)]
    ends = [
        item.choices if isinstance(item, CategoricalDistribution) else (item.low, item.high)  # type: ignore[attr-defined]
        for item in space.distributions.values()
    ]
    corners = itertools.islice(itertools.product(*ends), 256)
    ended = [dict(zip(space.distributions, corner, strict=True)) for corner in corners]
    return [{name: params[name] for name in space.names_of(params)} for params in drawn + ended]
