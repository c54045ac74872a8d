"""Tables for the terminal: the front of a study beside its baselines, and studies beside each other."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.victims import absent, read_victims
from study.report.targets import target_text
from study.results.fronts import compare, fronts
from study.results.in_words import models_of, movement_text, rule_in_words, settings_text
from study.results.repeats import repeated_searches
from study.results.rows import ALL_ATTACKS, GROUP, PLACE, at
from study.results.settings import aggregate_all
from study.spec.combinations import in_words
from study.spec.schema import StudySpec, differences

WIDTH = 120  # characters, where the output is no terminal and COLUMNS says nothing
E_LINE = "E: compute of a setting alone; 1 E is one training epoch over the attacker's full training set"


@dataclass(frozen=True)
class Column:
    """One column of a terminal table: its heading, and its place in the order in which columns are left out.

    ``drop`` is 0 for a column that always stays; else the columns with the highest go first.
    """

    name: str
    drop: int = 0
    words: bool = False  # at the left; numbers stand at the right


FRONT_COLUMNS = (
    Column("defense", words=True),
    Column("ASR"),
    Column("accuracy"),
    Column("E", drop=3),
    Column("remarks", drop=1, words=True),
    Column("setting", drop=2, words=True),
)
# Keys in which studies that are compared may differ: what was tried, in which order and where, not on which models.
MAY_BE_UNEQUAL = (
    "name:",
    "attacks:",
    "baselines:",
    "defenses:",
    "defense.",
    "search.",
    "tracking",
    "plugins",
    "set_apart",
)
# Columns of `compare` by their key; "group" and "study" are made here.
COMPARE_COLUMNS = {
    "group": Column("group", words=True),
    "study": Column("study", words=True),
    "trials": Column("settings", drop=5),
    "front": Column("front", drop=6),
    "models": Column("models", drop=7),
    "hypervolume_report": Column("hypervolume"),
    "box_report": Column("corner", drop=4),
    "knee_asr": Column("knee ASR", drop=3),
    "knee_clean_accuracy": Column("knee accuracy", drop=2),
    "best_clean_accuracy": Column("accuracy at ASR <= 0.1", drop=1),
}


def front_summary(directory: Path) -> str:
    """The front of each search and the baselines, as measured on the report half of the test set."""
    spec = stored_spec(directory)
    frame = Ledger.read(directory / LEDGER_FILE).to_frame()
    if frame.empty:
        judged = read_victims(directory)
        if judged and len(absent(judged)) == len(judged):
            return f"study {spec.name}: no backdoor, so there is no trial and no front"
        return f"study {spec.name}: no trial is finished yet"
    front, settings = fronts(frame), aggregate_all(frame)
    texts = []
    for keys, group in settings.groupby([*PLACE], sort=False):
        combination, dataset, model, attack = map(str, keys)
        members, rows = at(front, keys), at(frame, keys)
        target = target_text(rows) if len(rows) else ""
        aim = f", target class {target}" if target else ""
        swept = frame.loc[frame["combination"] == combination, "swept"]
        where = f"{in_words(swept.iloc[0])}: " if combination else ""
        called = f"all attacks ({rule_in_words(group)})" if attack == ALL_ATTACKS else attack
        title = f"{where}{called} on {dataset}, {model}{aim}: front and baselines (report half)"
        texts.append(table_text(title, FRONT_COLUMNS, _front_lines(attack, group, members)))
    texts += [textwrap.fill(_repeated_line(one), terminal_width()) for _, one in repeated_searches(frame).iterrows()]
    return "\n\n".join([*texts, textwrap.fill(E_LINE, terminal_width())])


def _repeated_line(one: pd.Series[Any]) -> str:
    """What the searches that were made several times come to."""
    where = f"{one['combination']}/" if one["combination"] else ""
    return (
        f"{where}{one['attack']}/{one['defense_label']}: searched {one['searches']} times, hypervolume "
        f"{one['hypervolume']:.4f} [{one['hypervolume_low']:.4f}, {one['hypervolume_high']:.4f}] (report half; mean "
        "and 95 % interval of the search's luck); shown is the first search"
    )


def compare_summary(directories: Mapping[str, Path]) -> str:
    """Fronts of several studies side by side, group by group.

    Args:
        directories: each by the name that people call it, which may be its path: it is shortened as far as all of
            them stay distinct.
    """
    specs: dict[str, StudySpec] = {}
    frames: dict[str, pd.DataFrame] = {}
    for called, directory in zip(distinct_names(directories), directories.values(), strict=True):
        specs[called] = stored_spec(directory)
        frames[called] = Ledger.read(directory / LEDGER_FILE).to_frame()
    compared = compare({name: frame for name, frame in frames.items() if not frame.empty})
    # What all rows have in common stands in the title, so that the table stays narrow.
    common = [key for key in ("combination", "dataset", "model") if compared[key].nunique() == 1]
    shared = [str(compared[key].iloc[0]) for key in common]
    where = f" ({', '.join(filter(None, shared))})" if common else ""
    lines = []
    for _, row in compared.iterrows():
        cells = {"group": " ".join(str(row[key]) for key in GROUP if key not in common)}
        lines.append([cells.get(key) or _cell(row[key]) for key in COMPARE_COLUMNS])
    title = f"Fronts on the report half{where}; hypervolume: the area that a front dominates, 1 is perfect"
    text = table_text(title, list(COMPARE_COLUMNS.values()), lines)
    return "\n".join([text, *(textwrap.fill(line, terminal_width()) for line in unequal(specs))])


def unequal(specs: Mapping[str, StudySpec]) -> list[str]:
    """What keeps the numbers of studies from being compared, a line for each study that differs from the first."""
    (first, one), *others = specs.items()
    found = []
    for name, other in others:
        apart = [line for line in differences(one, other) if not line.startswith(MAY_BE_UNEQUAL)]
        if apart:
            found.append(f"not under equal conditions: {name} differs from {first} in {'; '.join(apart)}")
    return found


def table_text(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """A table that is never wider than the terminal and never wraps: columns are left out instead, and it says which.

    Args:
        rows: cells in the order of ``columns``.
        width: characters; by default `terminal_width`.
    """
    width = width or terminal_width()
    rows = [list(row) for row in rows]
    kept = [place for place, column in enumerate(columns) if any(row[place] for row in rows) or not rows]
    dropped: list[int] = []
    for place in sorted((p for p in kept if columns[p].drop), key=lambda p: -columns[p].drop):
        if _needs(columns, rows, kept) <= width:
            break
        kept, dropped = [p for p in kept if p != place], [*dropped, place]
    for place in reversed(dropped):  # a narrow column that went first may fit after a wide one has gone
        more = sorted([*kept, place])
        if _needs(columns, rows, more) <= width:
            kept = more
    left_out = [columns[place].name for place in sorted(dropped) if place not in kept]
    text = [textwrap.fill(title, width), _text(_table(columns, rows, kept), width)]
    if left_out:
        note = f"left out to fit {width} characters: {', '.join(left_out)} (a larger COLUMNS shows more)"
        text.append(textwrap.fill(note, width))
    return "\n".join(text)


def terminal_width() -> int:
    """Characters that a line may have: the terminal's, or WIDTH where the output is none; COLUMNS goes over both."""
    if sys.stdout.isatty():
        return shutil.get_terminal_size((WIDTH, 24)).columns
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else WIDTH


def distinct_names(places: Iterable[str]) -> list[str]:
    """Each folder (or URI) by as few of its last parts as keep it apart from all others; one given twice, alike."""
    whole = [place if "://" in place else os.path.abspath(place) for place in map(str, places)]
    parts = [[part for part in place.replace(os.sep, "/").split("/") if part] for place in whole]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        lengths = range(1, len(own))
        length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
        names.append("/".join(own[-length:]) or "/")
    return names


def _front_lines(attack: str, group: pd.DataFrame, members: pd.DataFrame) -> list[list[str]]:
    """Cells of FRONT_COLUMNS: baselines, controls, then the front of each search."""
    lines = []
    for role, remark in (("baseline", "baseline"), ("control", f"clean model under {attack}'s trigger")):
        for _, row in group[group["role"] == role].iterrows():
            said = row["status"] if row["status"] != "ok" and role == "baseline" else remark
            said += ", collapsed" if row["collapsed"] else ""
            said = ", ".join(filter(None, (said, movement_text(row), models_of(row))))
            lines.append([str(row["defense_label"]), *_measured(row), said, settings_text(row)])
    searched = group[group["role"] == "search"]
    for _, member in members.iterrows():
        rivals = searched[searched["defense_label"] == member["defense_label"]]
        row = rivals[rivals["trial"] == member["trial"]].iloc[0]
        remarks = ["published"] if row["published"] else []
        remarks += ["knee"] if member["is_knee"] else []
        remarks += [row["status"]] if row["status"] != "ok" else []
        remarks += [words for words in (movement_text(row), models_of(row)) if words]
        lines.append([str(row["defense_label"]), *_measured(row), ", ".join(remarks), settings_text(row)])
    return lines


def _measured(row: pd.Series[Any]) -> tuple[str, str, str]:
    return _cell(row["asr_report"]), _cell(row["clean_accuracy_report"]), _cell(row["epochs_alone"], 1)


def _cell(value: object, digits: int = 4) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.{digits}f}"
    return str(value)


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place in kept:
        # A cell that is wider than even an empty terminal allows is cut: half a word is better than a torn table.
        justify: Any = "left" if columns[place].words else "right"
        table.add_column(columns[place].name, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(row[place].replace("[", r"\[") for place in kept))
    return table


def _needs(columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Characters that the table takes if nothing is cut."""
    console = Console(file=StringIO(), width=10_000)
    return Measurement.get(console, console.options, _table(columns, rows, kept)).maximum


def _text(table: Table, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width, no_color=True).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)
