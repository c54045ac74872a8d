"""What may have been meant by a key that a spec does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from study.spec.schema import StudySpec
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry, closest, did_you_mean, nearest


def hint(path: str, value: Any, settings: Mapping[str, Any]) -> str:
    """A hint for an unknown key: the nearest beside it; at the top of a spec also settings of the study's methods.

    Args:
        path: the key, with dots.
        value: what stands there.
        settings: the whole spec as it was given.
    """
    above = path.rpartition(".")[0]
    beside = [key for key in _known_keys() if key.rpartition(".")[0] == above]
    if above:
        return nearest(path, beside)
    methods = {name: registry for registry in (ATTACKS, DEFENSES) for name in registry.names()}
    for name in closest(path, {*methods, *_settings_of(settings), *beside})[:1]:
        if name in methods:
            return f"settings of a method are written {_full_name(methods[name], name, value)}"
    return _full_names(path, settings) or nearest(path, beside)


def nameless_setting(path: str, settings: Mapping[str, Any]) -> str:
    """A hint for ``defense.lr_max1``, where the method's name is left out; empty where that is not what happened."""
    for registry in (ATTACKS, DEFENSES):
        kind, _, setting = path.partition(".")
        if kind == registry.kind and setting and setting not in registry.names():
            return _full_names(setting, settings, (kind,))
    return ""


def _full_names(key: str, settings: Mapping[str, Any], kinds: tuple[str, ...] = ("attack", "defense")) -> str:
    """A hint for a setting given without its method, misspelled or not; empty where a key of the spec is nearer."""
    owners = _settings_of(settings)
    near = closest(key, {*owners, *StudySpec.model_fields})
    found = [f"{owner}.{name}" for name in near for owner in owners.get(name, ()) if owner.startswith(kinds)]
    return did_you_mean(found)


def _full_name(registry: Registry[Any], name: str, value: Any) -> str:
    """``defense.super_ft.lr_max1`` for what was given as ``super_ft: {lr_max1: 1}``, a misspelled setting corrected."""
    known = [field.name for field in dataclasses.fields(registry.get(name))]
    given = next(iter(value), "") if isinstance(value, Mapping) else ""
    near = [given] if given in known else closest(str(given), known)
    return f"{registry.kind}.{name}.{near[0] if near else 'KEY'}"


def _settings_of(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Every setting of the attacks and defenses that a spec names -> these methods, each as ``defense.super_ft``."""
    owners: dict[str, list[str]] = {}
    for registry, method in _methods(settings):
        for field in dataclasses.fields(registry.get(method)):
            owners.setdefault(field.name, []).append(f"{registry.kind}.{method}")
    return owners


def _methods(settings: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
    """The attacks and defenses that a spec names, as far as there are such."""
    for registry, keys in ((ATTACKS, ("attacks",)), (DEFENSES, ("defenses", "baselines"))):
        given = [settings.get(key) for key in keys]
        names = [name for item in given if isinstance(item, list) for name in item]
        yield from ((registry, name) for name in dict.fromkeys(map(str, names)) if name in registry.names())


def _known_keys(model: type[BaseModel] = StudySpec, prefix: str = "") -> list[str]:
    """All keys of a spec and of its parts, with dots."""
    keys = []
    for key, field in model.model_fields.items():
        keys.append(f"{prefix}{key}")
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                keys.extend(_known_keys(part, f"{prefix}{key}."))
    return keys
