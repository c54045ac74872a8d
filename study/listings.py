"""What there is, by name, and what one method takes: the settings of an attack or a defense, as rows and as text."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search_spaces import space as search_spaces
from study.report.figures.registry import FIGURES
from study.results.transfer import all_rules
from study.spec.load import recipe_names, recipe_path
from study.spec.samplers import SAMPLERS
from study.spec.trackers import TRACKERS
from study.spec.yaml_io import read_yaml_mapping
from trainables.attacks.base import ATTACKS
from trainables.data.sources.base import SOURCES
from trainables.defenses.base import DEFENSES
from trainables.descriptions import describe_settings
from trainables.models.build import MODELS
from trainables.plugins.load import Plugin, loaded, plugin_of
from trainables.registry import Registry, SettingError, nearest

# A table of settings in which their meanings have less room than this is hard to read.
MEANING_ROOM = 45
UNCUT = 10_000  # characters of a line, where the output is no terminal
COLUMNS = ("setting", "value", "default", "published", "searched", "meaning")


@dataclass(frozen=True)
class SettingRow:
    """One setting of a method, all in the words that people read and write.

    Args:
        kind: ``attack`` or ``defense``.
        method: its name.
        setting: the key; ``KIND.METHOD.SETTING`` is its full name in a spec.
        type: number, whole number, text, choice, ...; ``or null`` where it may be left empty.
        default: as it is written in YAML.
        allowed: range or choices; empty where every value of the type is allowed.
        published: value at the published point, if that states one.
        searched: range of the default search space, if that searches it.
        meaning: from the method's docstring.
        inherited: whether all methods of the same family have it.
    """

    kind: str
    method: str
    setting: str
    type: str
    default: str
    allowed: str
    published: str
    searched: str
    meaning: str
    inherited: bool

    @property
    def value(self) -> str:
        """Type and what is allowed in one: ``number > 0``, ``step, epoch``, ``whole number >= 1, or null``."""
        kind = self.type.removesuffix(" or null")
        if not self.allowed:
            return self.type
        own_words = kind in ("choice", "text")  # what is allowed says it all
        return (self.allowed if own_words else f"{kind} {self.allowed}") + ("" if kind == self.type else ", or null")


def settings_rows(name: str) -> list[SettingRow]:
    """A row for each setting of the method called ``name``; of both if it is an attack and a defense.

    Raises:
        SettingError: it is neither; the message names the nearest.
    """
    return [row for kind in _kinds(name) for row in _rows(kind, name)]


def settings_text(name: str) -> str:
    """The settings of the method called ``name``, fitted to the terminal (SettingError)."""
    kinds = _kinds(name)
    parts = [f"{name} is an attack and a defense; both are listed."] if len(kinds) > 1 else []
    for kind in kinds:
        cls = (ATTACKS if kind == "attack" else DEFENSES).get(name)
        parts.append(f"{kind} {name}: {first_line(cls)}")
        rows = sorted(_rows(kind, name), key=lambda row: row.inherited)
        if not rows:
            parts.append("It has no settings.")
            continue
        parts.append(_table(rows) if _has_room(rows, terminal_width()) else _paragraphs(rows, terminal_width()))
        example = rows[0]
        written = example.published or example.default
        parts.append(f"To change one: --set {kind}.{name}.{example.setting}={written}, or the same key in the spec.")
    return "\n\n".join(parts)


def first_line(thing: object) -> str:
    """What a class or a function is, in one line; nothing where its author does not say it."""
    return next(iter((inspect.getdoc(thing) or "").splitlines()), "")


def two_columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what is said of them; on a terminal the second column is wrapped to its width."""
    left = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, text in rows:
        line = f"{name:<{left}}  {text}".rstrip()
        lines.append(_wrapped(line, terminal_width(), indent=left + 2))
    return "\n".join(lines)


def range_in_words(distribution: object) -> str:
    """A searched range as people read it: ``0.01..2 log``, ``{a, b}``."""
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return "{" + ", ".join(map(in_yaml, choices)) + "}"
    low, high, log = (getattr(distribution, name) for name in ("low", "high", "log"))
    return f"{low:g}..{high:g}{' log' if log else ''}"


def in_yaml(value: Any) -> str:
    """A value as it is written in YAML and behind ``--set``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _kinds(name: str) -> list[str]:
    kinds = [registry.kind for registry in (ATTACKS, DEFENSES) if name in registry.names()]
    if not kinds:
        raise SettingError(
            f"unknown attack or defense {name!r}: {nearest(name, {*ATTACKS.names(), *DEFENSES.names()})}"
        )
    return kinds


def _rows(kind: str, name: str) -> list[SettingRow]:
    published: dict[str, Any] = {}
    searched: dict[str, str] = {}
    if kind == "defense" and name in search_spaces.names():
        published = dict(search_spaces.paper_point(name))
        searched = {key: range_in_words(item) for key, item in search_spaces.get_space(name).distributions.items()}
    cls: type[Any] = (ATTACKS if kind == "attack" else DEFENSES).get(name)
    return [
        SettingRow(
            kind=kind,
            method=name,
            setting=item.name,
            type=item.type,
            default="" if item.default is dataclasses.MISSING else in_yaml(item.default),
            allowed=item.allowed,
            published=in_yaml(published[item.name]) if item.name in published else "",
            searched=searched.get(item.name, ""),
            meaning=item.meaning,
            inherited=item.inherited,
        )
        for item in describe_settings(cls)
    ]


def _table(rows: Sequence[SettingRow]) -> str:
    """One line for each setting; what no setting of the method has gets no column."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [key for key in COLUMNS if any(getattr(row, key) for row in rows)]
    for key in shown:
        table.add_column(key, no_wrap=key == "setting")
    for row in rows:
        cells = {key: getattr(row, key) for key in shown} | {"meaning": _plain(row.meaning)}
        table.add_row(*(Text(cells[key]) for key in shown))  # as Text: brackets are no markup
    return _as_text(table)


def _has_room(rows: Sequence[SettingRow], width: int | None) -> bool:
    """Whether the table leaves its last column enough of ``width`` columns (None: there is no end)."""
    before = [max(len(key), *(len(getattr(row, key)) for row in rows)) + 3 for key in COLUMNS[:-1]]
    return width is None or sum(before) + MEANING_ROOM <= width


def _paragraphs(rows: Sequence[SettingRow], width: int | None) -> str:
    """Each setting in some lines: its value, and its meaning below, indented."""
    lines = []
    for row in rows:
        facts = [row.value, f"default {row.default}"]
        facts += [f"published {row.published}"] if row.published else []
        facts += [f"searched {row.searched}"] if row.searched else []
        lines.append(_wrapped(f"{row.setting}: {'; '.join(facts)}", width, indent=4))
        lines.append(_wrapped(f"    {_plain(row.meaning)}", width, indent=4))
    return "\n".join(lines)


def _plain(meaning: str) -> str:
    """A docstring's words without its marks, None as it is written in a spec."""
    return re.sub(r"\bNone\b", "null", meaning.replace("`", ""))


def _wrapped(line: str, width: int | None, *, indent: int) -> str:
    """``line`` in lines of at most ``width`` columns (None: as it is), all but the first indented."""
    if width is None:
        return line
    return textwrap.fill(line, max(width, indent + 20), subsequent_indent=" " * indent, break_on_hyphens=False)


def listing(what: str) -> list[tuple[str, str]]:
    """(name, one line) of all attacks, defenses, datasets, models, recipes, spaces, rules."""
    match what:
        case "attacks":
            return [(name, first_line(ATTACKS.get(name))) for name in ATTACKS.names()]
        case "defenses":
            return [(name, first_line(DEFENSES.get(name))) for name in DEFENSES.names()]
        case "datasets":
            own = ("folder:PATH", "your own images: PATH/train/CLASS/*, PATH/test/CLASS/*, or a zip of the same")
            return [*((name, source.description) for name, source in SOURCES.items()), own]
        case "models":
            return [(name, model.description) for name, model in MODELS.items()]
        case "recipes":
            return [(name, _recipe_line(name)) for name in recipe_names()]
        case "spaces":
            return [
                (
                    name,
                    ", ".join(
                        f"{key} {range_in_words(item)}"
                        for key, item in search_spaces.get_space(name).distributions.items()
                    ),
                )
                for name in search_spaces.names()
            ]
        case "samplers":
            return [(name, sampler.description) for name, sampler in SAMPLERS.items()]
        case "trackers":
            return [(name, tool.description) for name, tool in TRACKERS.items()]
        case "figures":
            return [(name, first_line(draw)) for name, draw in FIGURES.items()]
        case "rules":
            return [(name, first_line(rule)) for name, rule in all_rules().items()]
        case "plugins":
            return [(plugin.module, f"{plugin}, {_brings(plugin)}") for plugin in loaded()]
        case _:
            raise ValueError(f"nothing is listed as {what!r}")


def _recipe_line(name: str) -> str:
    first = recipe_path(name).read_text().splitlines()[0]
    text = first.removeprefix("#").strip() if first.startswith("#") else ""
    return text or str(read_yaml_mapping(recipe_path(name)).get("dataset"))


def _brings(plugin: Plugin) -> str:
    """What a plug-in has registered."""
    found = [
        f"{registry.kind} {name}"
        for registry in Registry.all()
        for name in registry.names()
        if plugin_of(registry.module_of(name)) == plugin
    ]
    return ", ".join(found) or "which registers nothing"


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output is none (a file, a pipe): its lines are as long as they are."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _as_text(table: Table) -> str:
    out = StringIO()
    Console(file=out, width=terminal_width() or UNCUT, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")
