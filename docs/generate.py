"""Those parts of the manual that the code itself knows best: keys of a spec, methods with their settings, columns.

`python -m docs.generate PART` prints one part; the site fills it in where a page says ``<!-- generated: PART -->``
(docs/hooks.py). Nothing of this is kept as text, so it cannot fall behind the code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from optuna.distributions import BaseDistribution, CategoricalDistribution
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from docs.meanings import SPEC_KEYS
from search_spaces import space as search_spaces
from study.record.columns import COLUMNS, NOTES, PARAMS
from study.spec.samplers import SAMPLERS
from study.spec.schema import StudySpec
from study.spec.trackers import TRACKERS
from study.watch.state import KEYS as STATE_KEYS
from trainables.attacks.base import ATTACKS
from trainables.columns import Column
from trainables.defenses.base import DEFENSES, CleanData, NoData, PoisonedData
from trainables.descriptions import Setting, describe_settings
from trainables.models.build import MODELS
from trainables.registry import Registry
from trainables.training.recipes import RECIPES
from trainables.victims.victim import CLEAN_SOURCES

OWNS = {
    NoData: "nothing but the model",
    CleanData: "clean images",
    PoisonedData: "the poisoned training set",
}

KINDS = {
    "text": "text",
    "count": "whole number",
    "number": "number",
    "flag": "`true` or `false`",
    "list": "list, joined by `;`",
    "json": "JSON",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def code(value: Any) -> str:
    """A value as it is written in YAML, in code type."""
    words = {None: "null", True: "true", False: "false"}
    text = (
        words[value] if value is None or isinstance(value, bool) else f"{value:g}" if _is_float(value) else str(value)
    )
    return f"`{text}`"


def _is_float(value: Any) -> bool:
    return isinstance(value, float) and float(f"{value:g}") == value


# ---------------------------------------------------------------------------------------------------------- spec keys


def spec_keys() -> str:
    """Every key of a study with its type, default, limits and meaning."""
    return table(("key", "type", "default", "meaning"), _key_rows(StudySpec, ""))


def _key_rows(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        key, part = f"{prefix}{name}", field.annotation
        # A part that may be left out is one of two types: itself, or none.
        options = get_args(part) if get_origin(part) in (Union, UnionType) else (part,)
        inner = next((one for one in options if _is_part(one)), None)
        if inner is not None:
            yield from _key_rows(inner, f"{key}.")
            continue
        meaning = field.description or SPEC_KEYS[key]
        yield f"`{key}`", _type_words(part, field.metadata), _default(field), meaning


def _is_part(hint: Any) -> bool:
    """Whether a key holds further keys."""
    return isinstance(hint, type) and issubclass(hint, BaseModel)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else code(value)


def _type_words(hint: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its limits, in words: ``whole number >= 1``."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return _type_words(inner, [*metadata, *more])
    if get_origin(hint) in (Union, UnionType):
        parts = [_type_words(part, metadata) for part in get_args(hint) if part is not NoneType]
        return " or ".join(dict.fromkeys(parts))
    if get_origin(hint) is Literal:
        return ", ".join(code(value) for value in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_plural(_type_words(get_args(hint)[0]))}"
    if get_origin(hint) is dict:
        return "mapping"
    words = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text", Path: "path"}
    return " ".join([words.get(hint, "text"), *_limits(metadata)])


def _plural(words: str) -> str:
    return {"text": "names", "whole number": "whole numbers"}.get(words, words.replace("number", "numbers", 1))


def _limits(metadata: Sequence[Any]) -> list[str]:
    found = []
    for item in metadata:
        for kind, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if isinstance(item, getattr(annotated_types, kind.capitalize())):
                found.append(f"{sign} {getattr(item, kind):g}")
        if isinstance(item, FieldInfo):
            found += _limits(item.metadata)
    return found


def recipes() -> str:
    """How victims can be trained."""
    keys = ("epochs", "batch_size", "lr", "schedule", "optimizer", "momentum", "weight_decay")
    head = ("recipe", "epochs", "batch size", "peak rate", "schedule", "optimiser", "momentum", "weight decay")
    return table(
        head,
        ((f"`{name}`", *(str(getattr(recipe, key)) for key in keys)) for name, recipe in RECIPES.items()),
    )


def choices() -> str:
    """The names that single keys take."""
    rows = {
        "model": [f"`{name}`: {model.description}" for name, model in MODELS.items()],
        "search.sampler": [code(name) for name in SAMPLERS.names()],
        "tracking": [code(name) for name in TRACKERS.names()],
        "clean_source": [code(name) for name in (*CLEAN_SOURCES, "folder:PATH")],
        "search.space": [f"`{name}: {other}`" for name in search_spaces.names() for other in _variants(name)],
    }
    return table(("key", "values"), ((f"`{key}`", "<br>".join(values)) for key, values in rows.items()))


def _variants(name: str) -> list[str]:
    module = sys.modules.get(f"search_spaces.{name}") or __import__(f"search_spaces.{name}", fromlist=["VARIANTS"])
    return list(getattr(module, "VARIANTS", {}))


# ------------------------------------------------------------------------------------------------------------ methods


def attack_table() -> str:
    """All attacks in one line each."""
    head = ("attack", "what", "releases")
    return table(head, ((f"[`{name}`](#{name})", _one_line(ATTACKS.get(name)), releases(name)) for name in _attacks()))


def defense_table() -> str:
    """All defenses in one line each."""
    head = ("defense", "what", "owns")
    rows = ((f"[`{name}`](#{name})", _one_line(DEFENSES.get(name)), owns(name)) for name in _defenses())
    return table(head, rows)


def _attacks() -> list[str]:
    return ATTACKS.names()


def _defenses() -> list[str]:
    return DEFENSES.names()


def releases(name: str) -> str:
    """What an attack hands to the world, so what a defender may own, in words."""
    attack = ATTACKS.create(name)
    model = "an encoder" if attack.releases_encoder else "a classifier"
    if not attack.implants_backdoor:
        return f"{model}, clean"
    return f"{model} and its training set" if attack.releases_training_set else model


def owns(name: str) -> str:
    """What a defense works with, in words."""
    return OWNS[DEFENSES.get(name).owns]


def attacks() -> str:
    """Every attack with its text, source and settings."""
    return "\n\n".join(_method(ATTACKS, name, f"Releases {releases(name)}.") for name in _attacks())


def defenses() -> str:
    """Every defense with its text, source, settings, published values and searched ranges."""
    return "\n\n".join(_method(DEFENSES, name, f"Owns {owns(name)}.") for name in _defenses())


def _method(registry: Registry[Any], name: str, fact: str) -> str:
    cls = registry.get(name)
    source = (inspect.getdoc(inspect.getmodule(cls)) or "").splitlines()[0]
    prose = (inspect.getdoc(cls) or "").partition("\nArgs:")[0].strip()
    parts = [f"### {name}", f"*{plain(source)}*", plain(prose), f"**{fact}**"]
    rows = settings_rows(registry, name)
    if rows:
        head = ("setting", "type", "default", *(("published", "searched") if registry is DEFENSES else ()), "meaning")
        parts.append(table(head, rows))
    else:
        parts.append("It has no settings.")
    return "\n\n".join(parts)


def settings_rows(registry: Registry[Any], name: str) -> list[tuple[str, ...]]:
    """One row per setting of a method: name, type, default, (published, searched,) meaning with its range."""
    published, searched = _published_and_searched(name) if registry is DEFENSES else ({}, {})
    rows = []
    for item in describe_settings(registry.get(name)):
        kind = _choices_or_range(item)
        default = "" if item.default is dataclasses.MISSING else code(item.default)
        tuned: tuple[str, ...] = ()
        if registry is DEFENSES:
            tuned = (code(published[item.name]) if item.name in published else "", searched.pop(item.name, ""))
        rows.append((f"`{item.name}`", kind, default, *tuned, plain(item.meaning)))
    others = [(f"`{key}`", "", "", "", text, "searched in place of settings") for key, text in searched.items()]
    return [*rows, *others]


def _choices_or_range(item: Setting) -> str:
    if item.type.startswith("choice"):
        return ", ".join(code(choice) for choice in item.allowed.split(", ")) + item.type.removeprefix("choice")
    kind, _, rest = item.type.partition(" or ")
    return f"{kind} {item.allowed}".strip() + (f" or {rest}" if rest else "")


def _published_and_searched(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    if name not in search_spaces.names():
        return {}, {}
    space = search_spaces.get_space(name)
    return dict(space.paper), {key: _range(item) for key, item in space.distributions.items()}


def _range(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(code(choice) for choice in distribution.choices)
    low, high, log = (getattr(distribution, key) for key in ("low", "high", "log"))
    return f"{low:g} to {high:g}{', log' if log else ''}"


def plain(text: str) -> str:
    """A docstring's markup as Markdown's."""
    return text.replace("``", "`")


def _one_line(cls: type) -> str:
    return plain((inspect.getdoc(cls) or "").splitlines()[0])


# ------------------------------------------------------------------------------------------------------------ columns


def result_columns() -> str:
    """All columns of a row, in the order of trials.csv."""
    return table(("column", "type", "unit", "meaning"), map(column_row, (*COLUMNS, PARAMS, NOTES)))


def column_row(column: Column) -> tuple[str, str, str, str]:
    """Name, type, unit and meaning of a column."""
    return f"`{column.name}`", KINDS[column.kind], column.unit, plain(column.meaning)


def show_keys() -> str:
    """Keys of ``superft show --json``."""
    return table(("key", "meaning"), ((f"`{key}`", meaning) for key, meaning in STATE_KEYS.items()))


PARTS: dict[str, Callable[[], str]] = {
    "spec-keys": spec_keys,
    "spec-choices": choices,
    "victim-recipes": recipes,
    "attack-table": attack_table,
    "defense-table": defense_table,
    "attacks": attacks,
    "defenses": defenses,
    "columns": result_columns,
    "show-keys": show_keys,
}
MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.M)


def fill(markdown: str) -> str:
    """A page with its generated parts (KeyError for a part that does not exist)."""
    return MARK.sub(lambda found: PARTS[found[1]](), markdown)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(f"usage: python -m docs.generate PART; parts: {', '.join(PARTS)}")
    print(PARTS[sys.argv[1]]())
