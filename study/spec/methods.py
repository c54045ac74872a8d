"""Methods as a spec names them: settings coerced to their types, search spaces, published points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from search_spaces import space as search_spaces
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, SettingError


def typed_settings(
    registry: Registry[Any], name: str, given: Mapping[str, Any], label: str | None = None
) -> dict[str, Any]:
    """``given`` settings of a method, each coerced to its field's type.

    Args:
        registry, name: of the method.
        given: as the spec has them.
        label: under which the spec has them, for messages; default the name.

    Raises:
        SettingError: unknown key, wrong type, or a value the method refuses.
    """
    cls, label = registry.get(name), label or name
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(given, Mapping):
        raise SettingError(f"{registry.kind}.{label} must be a mapping of settings, got {given!r}")
    for key in given:
        if key not in known:
            raise registry.unknown_setting(name, str(key), label)
    instance = registry.create(name, given)
    return {key: getattr(instance, key) for key in given}


def published_settings(defense: str, dataset: str) -> dict[str, Any]:
    """The published point for a data set as a row shows it: what is searched, and what is not the defense's default."""
    if defense not in search_spaces.names():
        return {}
    space = search_spaces.get_space(defense, dataset=dataset)
    return {**space.beside(defense), **space.to_settings(space.paper_params())}


def is_published(defense: str, settings: Mapping[str, Any], dataset: str) -> bool:
    """Whether settings agree with the published point for a data set in everything that it states."""
    paper = search_spaces.paper_point(defense, dataset)
    # What is neither searched nor fixed stays at its default.
    complete = dataclasses.asdict(DEFENSES.create(defense, settings)) if paper else {}
    return bool(paper) and all(_equal(complete.get(key), value) for key, value in paper.items())


def _equal(value: Any, published: Any) -> bool:
    if isinstance(published, float) and isinstance(value, int | float):
        return math.isclose(value, published, rel_tol=1e-9)
    return bool(value == published)
