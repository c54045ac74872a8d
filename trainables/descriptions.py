"""Settings told to people, from the classes themselves: types and ranges from the fields, meanings from docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

from trainables.settings import FieldRule, rules_of

_KIND_WORDS = {float: "number", int: "whole number", bool: "true or false", str: "text"}
_ENTRY = re.compile(r"(\w+(?:, \w+)*): +(.*)")


@dataclass(frozen=True)
class Setting:
    """One setting of a method.

    Args:
        name: of the field.
        type: in words: ``number``, ``whole number or null``, ``choice``.
        default: its value; `dataclasses.MISSING` where it must be given.
        allowed: range or choices in words; empty where every value of the type is allowed.
        meaning: from the docstring of the class, or of the one that it inherits the field from.
        inherited: whether the field is a base class's, as it stands there.
    """

    name: str
    type: str
    default: Any
    allowed: str
    meaning: str
    inherited: bool


def describe_settings(cls: type) -> list[Setting]:
    """The settings of a dataclass (an attack, a defense, a recipe), in the order of its fields."""
    own, rules, told = inspect.get_annotations(cls), rules_of(cls), meanings(cls)
    return [
        Setting(
            name=field.name,
            type=_type_in_words(rules[field.name]),
            default=field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
            allowed=allowed_in_words(rules[field.name]),
            meaning=told.get(field.name, ""),
            inherited=field.name not in own,
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]


def meanings(cls: type) -> dict[str, str]:
    """Name -> meaning from the Args sections of a class and its bases; the nearest class that tells of a name wins."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= args_section(base.__dict__.get("__doc__") or "")
    return found


def args_section(docstring: str) -> dict[str, str]:
    """Name -> text from the Args section of a docstring; what is said of several names at once is said of each."""
    _, _, section = inspect.cleandoc(docstring).partition("\nArgs:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):  # the next section
            break
        entry = _ENTRY.fullmatch(line[4:]) if not line.startswith(" " * 5) else None
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def allowed_in_words(rule: FieldRule) -> str:
    """Range or choices of a field, without what its type says already."""
    if rule.choices:
        return ", ".join(map(str, rule.choices))
    return ", ".join(bound.words.removesuffix(" or none") for bound in rule.bounds)


def _type_in_words(rule: FieldRule) -> str:
    words = "choice" if rule.choices else _KIND_WORDS.get(rule.kind or object, "value")
    return f"{words} or null" if rule.optional else words
