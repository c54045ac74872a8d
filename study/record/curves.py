"""Rates along repairs, in the folder ``curves`` beside the ledger: one small JSON file for each trial.

A file is written before the trial's row. A driver that is killed in between leaves a file without a row, which the
trial, run again, writes anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from study.record.files import write_atomically
from study.record.ledger import key_as_name, row_key

CURVES_FOLDER = "curves"
KEY = ("trial", "attack", "seed", "defense_seed")
# Columns of `read_curves`: whose curve, then its points, see `trainables.evaluation.curve.Curve`.
OF_POINTS = (
    *("step", "passes", "stage", "kept", "asr", "clean_accuracy", "robust_accuracy"),
    *("asr_report", "clean_accuracy_report", "robust_accuracy_report"),
)


def curve_file(row: Mapping[str, Any]) -> str:
    """Name of the file of a row's curve within the study's folder."""
    return f"{CURVES_FOLDER}/{key_as_name(row_key(row))}.json"


def write_curve(directory: Path, row: Mapping[str, Any], points: Iterable[Mapping[str, Any]]) -> str:
    """Keep the curve of a row; returns the name of its file."""
    name = curve_file(row)
    (directory / CURVES_FOLDER).mkdir(exist_ok=True)
    content = {**dict(zip(KEY, row_key(row), strict=True)), "points": list(points)}
    write_atomically(directory / name, (json.dumps(content, allow_nan=False) + "\n").encode())
    return name


def read_curves(directory: Path, rows: Iterable[Mapping[str, Any]], notes: list[str] | None = None) -> pd.DataFrame:
    """The curves of these rows as one table, a line for each point; rows without a curve have none.

    Columns: `KEY`, ``combination, dataset, model, defense_label, role, published``, and `OF_POINTS`.

    Args:
        notes: gets a line for each file that is damaged.
    """
    records = []
    columns = (*KEY, "combination", "dataset", "model", "defense_label", "role", "published")
    for row in rows:
        path = directory / curve_file(row)
        try:
            points = json.loads(path.read_text(encoding="utf-8"))["points"]
            own = {name: row.get(name) for name in columns}
            own |= {"combination": row.get("combination") or "", "defense_seed": row.get("defense_seed", 0)}
            records += [{**own, **{name: point.get(name) for name in OF_POINTS}} for point in points]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if notes is not None:
                notes.append(f"{path} is damaged ({error}); its curve is left out")
    return pd.DataFrame(records, columns=[*columns, *OF_POINTS])
