"""The columns of a ledger, one typed table, and rows as a table for pandas.

What a trial finds is described in `trainables.columns`; here is what the study knows of it besides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainables.columns import (
    AFTERMATH_COLUMNS,
    CELL_COLUMNS,
    CONDITION_COLUMNS,
    DETECTION_COLUMNS,
    KEPT_COLUMNS,
    RESULT_COLUMNS,
    SHARE,
    STATUS,
    Column,
)

if TYPE_CHECKING:
    import pandas as pd

# Raised when columns change their meaning; rows without the column are of version 1 and are read as `upgraded` says.
SCHEMA = 3
PARAM, NOTE = "param.", "note."
DROPPED_BY, CELLS_SAVED = "dropped_by", "cells_saved"

STUDY_COLUMNS = (
    Column("study", "text", "name of the study"),
    Column("trial", "text", "id of the setting: SEARCH/NUMBER, or ATTACK/DEFENSE/baseline or /control"),
)
PLACE_COLUMNS = (
    Column(
        "role",
        "text",
        "search, repeat (of a search made once more), confirm (a chosen setting on a fresh seed), baseline, control: a "
        "baseline on the clean model",
    ),
    Column("search", "text", "the search that proposed the setting: ATTACK/DEFENSE, or all/DEFENSE; else missing"),
    Column("published", "flag", "whether the settings are the published point, in all that its source states"),
    Column("on_front", "flag", "whether the setting is on its search's front; only in tables: it changes as rows come"),
    Column("charged_epochs", "number", "what the search was charged for the trial", "E"),
    Column("models", "count", "victims that the setting is meant for, those without a backdoor included"),
    Column(
        "warm_start", "text", "the study whose front the setting was taken from, see search.warm_start; else missing"
    ),
    Column(
        "start",
        "text",
        "the further point that the search space names to begin with, as ft_cosine of the family of schedules; else "
        "missing",
    ),
    Column(
        "aggregate",
        "text",
        "how the study takes attacks together, see search.aggregate: worst, cvar:LEVEL; missing: mean",
    ),
    Column("repeat", "count", "of a search made once more, see search.repeats: its number, from 1; else missing"),
    Column(
        DROPPED_BY,
        "text",
        "where the setting was dropped on this row, see search.racing: the setting that is better; else missing",
    ),
    Column(CELLS_SAVED, "count", "with it: cells of the dropped setting that were not begun"),
    Column("gpus", "number", "share of a GPU that the trial had", "GPUs"),
    Column("node", "text", "of the cluster, the beginning of its id"),
    Column("schema", "count", "version of these columns"),
    Column("published_for", "text", "the data set that the published point was stated for; missing for other settings"),
)
# In the order of trials.csv; the settings, param.NAME, stand behind the fixed results.
COLUMNS: tuple[Column, ...] = (
    *STUDY_COLUMNS,
    *CELL_COLUMNS,
    STATUS,
    *RESULT_COLUMNS[:12],
    *PLACE_COLUMNS,
    *CONDITION_COLUMNS,
    *RESULT_COLUMNS[12:],
    *DETECTION_COLUMNS,
    *AFTERMATH_COLUMNS,
    *KEPT_COLUMNS,
)
# Families of columns whose members depend on the defense.
PARAMS = Column(f"{PARAM}NAME", "text", "a setting of the defense; numbers where all of them are")
NOTES = Column(f"{NOTE}NAME", "text", "a further number that the defense reports, see its page")

# What a row of an earlier version means that does not have a column.
_WITHOUT: dict[str, Any] = {"combination": "", "label_noise": 0.0, "residual_poison": 0.0}
_DTYPES = {"count": "Int64", "number": "float64", "flag": "boolean"}


def upgraded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of any version up to today's, in today's columns.

    Version 1: the search was named in the trial's id alone; a collapsed model was a flag; ``scenario`` told how the
    victim was made, which is ``standalone`` for the scenario ``same-label`` too, and is left as it is. Version 2: there
    was one defense seed, 0, and a defense stood in a study under its registered name alone.

    Raises:
        ValueError: the row was written by a later version of superft.
    """
    version = row.get("schema", 1)
    if version == SCHEMA:
        return dict(row)
    if not isinstance(version, int) or version > SCHEMA:
        raise ValueError(f"written by a later version of superft (columns {version}, known: up to {SCHEMA}); update it")
    new = dict(row)
    if "search" not in new:
        searched = new.get("role") == "search" and isinstance(new.get("trial"), str)
        new["search"] = new["trial"].rpartition("/")[0] if searched else None
    if "collapsed" not in new and new.get("status") != "failed":
        flags = list(new.get("flags") or ())
        new["collapsed"] = "collapsed" in flags
        new["flags"] = [flag for flag in flags if flag != "collapsed"]
    if new.get("scenario") == "new_head":
        new["scenario"] = "new-head"
    new.setdefault("defense_seed", 0)
    if "defense" in new:
        new.setdefault("defense_label", new["defense"])
    return new


def to_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table with the fixed columns, in their order, whatever the rows hold.

    Numbers are float64 (missing: NaN), counts Int64, flags boolean (missing: NA), texts objects (missing: None; of
    ``combination``: empty), lists joined with ``;``. ``param.*`` columns are sorted and stand behind the rates;
    ``note.*`` and columns that this version does not know come last. Columns of these three are numeric where all of
    their values are numbers.
    """
    import pandas as pd  # here: slow to import, and who looks at rows alone needs none

    rows = [upgraded(row) for row in rows]
    known = {column.name: column for column in COLUMNS}
    names = {name for row in rows for name in row}
    params = sorted(name for name in names if name.startswith(PARAM))
    extra = sorted(names - set(known) - set(params))
    fixed = [column.name for column in COLUMNS]
    place = fixed.index(PLACE_COLUMNS[0].name)
    return pd.DataFrame(
        {
            name: _column(
                [row.get(name, _WITHOUT.get(name)) for row in rows], known[name].kind if name in known else None
            )
            for name in (*fixed[:place], *params, *fixed[place:], *extra)
        }
    )


def as_list(cell: Any) -> list[str]:
    """The items of a list column of ``to_frame``, where they are joined to one text; none of a missing value."""
    return [text for text in str(cell).split(";") if text] if isinstance(cell, str) else []


def unit_of(name: str) -> str:
    """Unit of a column; empty where it has none, or is not known."""
    return next((column.unit for column in COLUMNS if column.name == name), "")


def is_share(name: str) -> bool:
    """Whether a column holds fractions in [0, 1]."""
    return unit_of(name) == SHARE


def _column(values: Sequence[Any], kind: str | None) -> pd.Series[Any]:
    import pandas as pd  # here: see `to_frame`

    if kind is None:
        kind = _kind_of(values)
    if kind in _DTYPES:
        return pd.Series(list(values), dtype=_DTYPES[kind])
    return pd.Series([_plain(value) for value in values], dtype="object")


def _kind_of(values: Sequence[Any]) -> str | None:
    """Count or number, where all values that are there are."""
    types = {type(value) for value in values if value is not None}
    if types == {int}:
        return "count"
    return "number" if types and types <= {int, float} else None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else value
