"""The fields of a settings class: other values for each, what they matter beside, and those that are lost silently."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


def alternatives(instance: Any, name: str) -> list[Any]:
    """Other values for a field, by its type; the class may refuse some of them. None are known for free text."""
    value, hint = getattr(instance, name), get_type_hints(type(instance))[name]
    kinds = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    found: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            found += list(get_args(kind))
        elif kind is bool:
            found += [True, False]
        elif kind is int:
            found += [1, 2, 3] if value is None else [max(1, value // 2), 3, value + 1]
        elif kind is float:
            found += [0.05, 0.5] if not value else [value / 2, value * 2, value * 0.9, 0.0]
    return [other for other in dict.fromkeys(found) if other != value]


def matters_with(cls: type) -> dict[str, Mapping[str, Any]]:
    """Field -> settings beside which it matters, as ``matters_with`` of the class and of its bases declares it."""
    found: dict[str, Mapping[str, Any]] = {}
    for base in reversed(cls.__mro__):
        found |= base.__dict__.get("matters_with", {})
    return found


def lost_fields(cls: type) -> list[str]:
    """Fields and defaults that a class writes down and that ``dataclass`` does not know: nobody could set them.

    The usual cause is a class without ``@dataclass``: it inherits the constructor of its base, and its own fields stay
    what they are in the file. One line for each, naming class and field.
    """
    known = {item.name: item for item in dataclasses.fields(cls)}
    lost = []
    for base in cls.__mro__:
        for name, hint in inspect.get_annotations(base).items():
            if name not in known and not _is_class_variable(hint):
                lost.append(f"{base.__name__}.{name} is no setting: put @dataclass(frozen=True) above {base.__name__}")
    for name, item in known.items():
        default = getattr(cls, name, item.default)
        if item.default is not dataclasses.MISSING and default != item.default:
            lost.append(
                f"{cls.__name__}.{name} = {default!r} is ignored, the default stays {item.default!r}: write it as a "
                f"field with its type, under @dataclass(frozen=True)"
            )
    return lost


def _is_class_variable(hint: Any) -> bool:
    if isinstance(hint, str):
        return hint.removeprefix("typing.").startswith("ClassVar")
    return hint is ClassVar or get_origin(hint) is ClassVar
