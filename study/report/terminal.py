"""Tables for the terminal: the front of a study beside its baselines, and studies beside each other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from study.record.folder import LEDGER_FILE, stored_spec
from study.record.ledger import Ledger
from study.results.settings import GROUP, aggregate, compare, fronts, settings_text

# What is no terminal (a file, a pipe) gets lines as long as they are.
UNCUT = 10_000


def front_summary(directory: Path) -> str:
    """The front of each search and the baselines, as measured on the report half of the test set."""
    spec = stored_spec(directory)
    frame = Ledger.read(directory / LEDGER_FILE).to_frame()
    if frame.empty:
        return f"study {spec.name}: no trial is finished yet"
    front, settings = fronts(frame), aggregate(frame)
    texts = []
    for (dataset, model, attack), group in settings.groupby(["dataset", "model", "attack"], sort=False):
        table = Table(title=f"{attack} on {dataset}, {model}: front and baselines (report half)", title_justify="left")
        table.add_column("defense")
        for name in ("ASR", "clean accuracy", "E"):
            table.add_column(name, justify="right")
        table.add_column("settings")
        for _, row in group[group["role"] == "baseline"].iterrows():
            table.add_row(row["defense"], *_measured(row), row["status"] if row["status"] != "ok" else "baseline")
        for _, row in group[group["role"] == "control"].iterrows():
            table.add_row(row["defense"], *_measured(row), f"clean model under {attack}'s trigger")
        members = front[(front["attack"] == attack) & (front["dataset"] == dataset) & (front["model"] == model)]
        searched = group[group["role"] == "search"]
        for _, member in members.iterrows():
            rivals = searched[searched["defense"] == member["defense"]]
            row = rivals[rivals["trial"] == member["trial"]].iloc[0]
            remarks = [settings_text(row)]
            remarks += ["published point"] if row["published"] else []
            remarks += ["knee"] if member["is_knee"] else []
            remarks += [row["status"]] if row["status"] != "ok" else []
            table.add_row(row["defense"], *_measured(row), "; ".join(filter(None, remarks)))
        texts.append(as_text(table))
    return "\n".join(texts)


def compare_summary(directories: Mapping[str, Path]) -> str:
    """Fronts of several studies side by side, group by group; by the name that people call the folder."""
    frames: dict[str, pd.DataFrame] = {}
    for called, directory in directories.items():
        stored_spec(directory)
        frames[called] = Ledger.read(directory / LEDGER_FILE).to_frame()
    table = Table(title="Fronts on the report half; hypervolume: reference (ASR 1, accuracy 0)", title_justify="left")
    compared = compare({name: frame for name, frame in frames.items() if not frame.empty})
    columns = {
        "study": "study",
        "trials": "settings",
        "front": "front",
        "hypervolume_report": "hypervolume",
        "box_report": "box",
        "knee_asr": "knee ASR",
        "knee_clean_accuracy": "knee accuracy",
        "best_clean_accuracy": "best accuracy at ASR <= 0.1",
    }
    table.add_column("group")
    for label in columns.values():
        table.add_column(label, justify="left" if label == "study" else "right")
    for _, row in compared.iterrows():
        table.add_row(" ".join(str(row[key]) for key in GROUP), *(_cell(row[key]) for key in columns))
    return as_text(table)


def _measured(row: pd.Series[Any]) -> tuple[str, str, str]:
    return _cell(row["asr_report"]), _cell(row["clean_accuracy_report"]), _cell(row["epochs_alone"], 1)


def _cell(value: object, digits: int = 4) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.{digits}f}"
    return str(value)


def terminal_width() -> int | None:
    """Columns of the terminal that standard output goes to; None if it goes elsewhere, where nothing need fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_text(table: Table) -> str:
    """A table as text, fitted to the terminal's width if there is one; no line ends in spaces."""
    out = StringIO()
    Console(file=out, width=terminal_width() or UNCUT, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")
