"""Columns of the ledger and of trials.csv, and rows as a table for pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

# Order of trials.csv. "param.NAME" stands for all settings, sorted by name; columns not named here come last.
COLUMNS: tuple[str, ...] = (
    *("study", "trial", "attack", "defense", "dataset", "model", "seed", "status"),
    *("asr", "clean_accuracy", "robust_accuracy"),
    *("asr_search", "clean_accuracy_search", "robust_accuracy_search"),
    *("asr_report", "clean_accuracy_report", "robust_accuracy_report"),
    *("asr_before", "clean_accuracy_before", "robust_accuracy_before"),
    "param.NAME",
    *("steps", "forward_samples", "backward_samples", "wall_seconds", "peak_memory_bytes"),
    *("device", "versions", "error"),
    *("role", "n_clean", "n_triggered", "n_clean_report", "n_triggered_report", "asr_base", "false_target_rate"),
    *("asr_before_report", "clean_accuracy_before_report", "robust_accuracy_before_report", "train_size"),
    *("seconds_setup", "seconds_repair", "seconds_evaluate", "started", "flags", "published"),
)
COUNTS = frozenset(
    (
        "seed",
        "steps",
        "forward_samples",
        "backward_samples",
        "peak_memory_bytes",
        "train_size",
        "n_clean",
        "n_triggered",
        "n_clean_report",
        "n_triggered_report",
    )
)
TEXTS = frozenset(
    (
        "study",
        "trial",
        "attack",
        "defense",
        "dataset",
        "model",
        "status",
        "device",
        "versions",
        "error",
        "role",
        "started",
        "flags",
        "published",
    )
)
PARAM = "param."


def to_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table with the fixed columns, in their order, whatever the rows hold.

    Metrics and seconds are float64 (missing: NaN), counts Int64 (missing: NA), texts and settings objects (missing:
    None), so that a setting keeps its own type. ``param.*`` columns are sorted and stand where COLUMNS says
    ``param.NAME``.
    """
    rows = list(rows)
    names = {name for row in rows for name in row}
    params = sorted(name for name in names if name.startswith(PARAM))
    extra = sorted(names - set(COLUMNS) - set(params))
    columns: list[str] = []
    for column in COLUMNS:
        columns += params if column == f"{PARAM}NAME" else [column]
    return pd.DataFrame({column: _column(column, [row.get(column) for row in rows]) for column in (*columns, *extra)})


def as_list(cell: Any) -> list[str]:
    """The items of a list column of ``to_frame``, where they are joined to one text; none of a missing value."""
    return [text for text in str(cell).split(";") if text] if isinstance(cell, str) else []


def _column(name: str, values: Sequence[Any]) -> pd.Series[Any]:
    if name in COUNTS:
        return pd.Series(values, dtype="Int64")
    if name in COLUMNS and name not in TEXTS:
        return pd.Series(values, dtype="float64")
    return pd.Series([";".join(map(str, v)) if isinstance(v, list | tuple) else v for v in values], dtype="object")
