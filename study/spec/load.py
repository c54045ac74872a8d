"""Specs from recipes, YAML files and --set; errors name key, value and remedy."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.spec.hints import hint, nameless_setting
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError, merge_assignments, parse_yaml_mapping, read_yaml_mapping
from trainables.registry import SettingError, nearest

STANDARD_INPUT = "-"


def load_spec(source: str | None, assignments: Iterable[str] = (), plugins: Sequence[str] = ()) -> StudySpec:
    """The spec of a recipe's name, a YAML file or standard input (``-``), with ``--set`` assignments and plug-ins.

    Raises:
        SpecError: one clear line.
    """
    name = source or "quickstart"
    if name == STANDARD_INPUT:
        settings = _read_standard_input()
    elif name in recipe_names():
        settings = read_yaml_mapping(recipe_path(name))
    elif Path(name).is_file():
        settings = read_yaml_mapping(Path(name))
    elif Path(name).suffix in (".yaml", ".yml") or "/" in name:
        raise SpecError(f"no such file: {name}")
    else:
        raise SpecError(f"unknown recipe {name!r}: {nearest(name, recipe_names())}; a file must end in .yaml")
    return make_spec(with_plugins(merge_assignments(settings, assignments), plugins))


def with_plugins(settings: dict[str, Any], plugins: Sequence[str]) -> dict[str, Any]:
    """``settings`` with ``plugins`` after those that they name."""
    named = settings.get("plugins") or []
    return settings | {"plugins": [*named, *plugins]} if plugins and isinstance(named, list) else settings


def make_spec(settings: Mapping[str, Any]) -> StudySpec:
    """The validated spec of a mapping (SpecError)."""
    try:
        return StudySpec.model_validate(dict(settings))
    except ValidationError as error:
        raise SpecError(_one_line(error, settings)) from error
    except SettingError as error:
        raise SpecError(str(error)) from error


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe that ships."""
    return Path(str(resources.files("study") / "recipes" / f"{name}.yaml"))


def recipe_text(name: str) -> str:
    """A recipe that ships, word for word as in its file.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in recipe_names():
        raise SpecError(f"unknown recipe {name!r}: {nearest(name, recipe_names())}")
    return recipe_path(name).read_text(encoding="utf-8")


def recipe_names() -> list[str]:
    """Recipes that ship, sorted; those in a folder are called by their path: ``FOLDER/NAME``."""
    folder = Path(str(resources.files("study") / "recipes"))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _read_standard_input() -> dict[str, Any]:
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise SpecError(f"cannot read standard input: {error}") from error
    return parse_yaml_mapping(text, "standard input")


def _one_line(error: ValidationError, settings: Mapping[str, Any]) -> str:
    """The first complaint of pydantic about ``settings`` as ``key: what, got value``."""
    first, *others = error.errors()
    if first["type"] == "missing":  # it may be there, misspelled
        first = next((other for other in others if other["type"] == "extra_forbidden"), first)
    # Type tags of unions are no keys of ours.
    path = ".".join(
        str(part) for part in first["loc"] if not str(part).startswith(("literal[", "constrained-", "float", "int"))
    )
    if first["type"] == "extra_forbidden":
        return f"unknown key {path!r}: {hint(path, first['input'], settings)}"
    if first["type"] == "missing":
        return f"missing key {path!r}"
    prefix = f"{path}: " if path else ""
    if first["type"] == "value_error":  # our own words
        return prefix + first["msg"].removeprefix("Value error, ")
    message = first["msg"].replace("Input should", "must").replace("must be a valid", "must be a")
    for theirs, ours in _PLAIN_WORDS.items():
        message = re.sub(theirs, ours, message, flags=re.IGNORECASE)
    meant = nameless_setting(path, settings) if first["type"] == "dict_type" else ""
    return f"{prefix}{message[0].lower()}{message[1:]}, got {first['input']!r}{f'; {meant}' if meant else ''}"


# pydantic's words -> ours.
_PLAIN_WORDS = {
    r"must be a dictionary( or instance of \w+)?": "must be a mapping of keys",
    r"must be a list": "must be a list such as [a, b]",
    r"must be a integer, .*": "must be a whole number",
    r"must be a (number|boolean), .*": r"must be a \1",
    r"must be a boolean": "must be true or false",
    r"must be a string": "must be text",
    r"must be a integer": "must be a whole number",
    r"list should have at least 1 item after validation, not 0": "must name at least one",
    r"string should match pattern .*": "must be letters, digits, dot, dash and underscore",
}
