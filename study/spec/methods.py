"""Methods as a spec names them: settings coerced to their types, search spaces, published points."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from search_spaces import space as search_spaces
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, SettingError, nearest

# The key beside a defense's settings that says which defense a label stands for, and what a label may look like (it is
# a part of trial ids, file names and columns).
METHOD = "method"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def method_of(label: str, given: Any) -> str:
    """The registered defense that a label stands for: itself where nothing else is given.

    Args:
        label: as it stands in ``defenses`` or ``baselines``.
        given: what the spec has under ``defense.LABEL``.

    Raises:
        SettingError: neither the label nor what is given names a defense, or the label may not be one.
    """
    if not isinstance(given, Mapping) or METHOD not in given:
        if label not in DEFENSES:
            raise SettingError(
                f"unknown defense {label!r}: {nearest(label, DEFENSES.names())}; a label of your own needs "
                f"defense.{label}.{METHOD}: DEFENSE"
            )
        return label
    method, key = given[METHOD], f"defense.{label}.{METHOD}"
    if not isinstance(method, str) or method not in DEFENSES:
        raise SettingError(f"{key}: unknown defense {method!r}: {nearest(str(method), DEFENSES.names())}")
    if label in DEFENSES and label != method:
        raise SettingError(f"{key}: {label} is the name of a defense itself; choose another label for {method}")
    if not LABEL.fullmatch(label):
        raise SettingError(
            f"defense.{label}: a label is made of letters, digits, _, - and ., begins with a letter or digit and has "
            "at most 40 of them"
        )
    return method


def without_method(given: Any) -> Any:
    """What the spec has under ``defense.LABEL``, but for the name of the defense."""
    return {key: value for key, value in given.items() if key != METHOD} if isinstance(given, Mapping) else given


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
    numbers = {key: value for key, value in paper.items() if isinstance(value, int | float)}
    if not all(_equal(settings.get(key, value), value) for key, value in numbers.items()):
        return False  # nearly all settings of a search: for those no defense is made
    # What is neither searched nor fixed stays at its default.
    complete = dataclasses.asdict(DEFENSES.create(defense, settings)) if paper else {}
    return bool(paper) and all(_equal(complete.get(key), value) for key, value in paper.items())


def _equal(value: Any, published: Any) -> bool:
    if isinstance(published, float) and isinstance(value, int | float):
        return math.isclose(value, published, rel_tol=1e-9)
    return bool(value == published)
