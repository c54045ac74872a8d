"""The result of a simulation: as one JSON-able mapping, as tables for the terminal, as files."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from study.record.files import write_atomically
from study.record.folder import SPEC_FILE
from study.report.terminal import Column, table_text, terminal_width
from study.results.intervals import mean_interval
from study.simulate.dependence import dependence
from study.simulate.figures import attainment_png, curves_png, dependence_png
from study.simulate.grid import Grid
from study.simulate.runs import Question
from study.simulate.summary import (
    BOXES,
    STEPS,
    Array,
    Traces,
    attainment,
    common_epochs,
    over_epochs,
    over_trials,
    paired,
    seeds_needed,
    to_target,
)
from study.simulate.surrogate import Surrogate
from study.simulate.table import Table, export
from study.spec.yaml_io import SpecError

RESULT_FILE = "simulation.json"
ADAPTIVE = (
    "The settings of this table were chosen by {names}: where a sampler looked it is dense, elsewhere it is thin."
)
WITHIN_TABLE = (
    "All of this is said of the surrogate of one table: it decides between samplers, and says nothing of a defense."
)


def result_of(question: Question, traces: Traces, grid: Grid | None) -> dict[str, Any]:
    """Everything that was found, with the question."""
    epochs = common_epochs(traces)
    by_trials = {box: over_trials(traces, box) for box in BOXES}
    by_epochs = {box: over_epochs(traces, box, epochs) for box in BOXES}
    samplers: dict[str, Any] = {}
    for name, runs in traces.items():
        samplers[name] = {
            box: {
                "over_trials": _curve(by_trials[box][name]),
                "over_epochs": _curve(by_epochs[box][name]),
                "final": by_trials[box][name][:, -1].tolist(),
                **({} if grid is None else {"to_grid": to_target(runs, box, grid.targets[box])}),
            }
            for box in BOXES
        }
        samplers[name]["epochs"] = float(np.mean([trace.epochs[-1] for run in runs for trace in run.values()]))
        samplers[name]["seconds"] = float(np.mean([max(trace.seconds[-1] for trace in run.values()) for run in runs]))
    return {
        "defense": question.table.label,
        "attacks": question.table.attacks,
        **{key: getattr(question, key) for key in ("trials", "seeds", "slots", "per", "noise")},
        "surrogates": {
            attack: {"settings": one.settings, "held_out_error": one.errors, "accuracy_before": one.before}
            for attack, one in question.surrogates.items()
        },
        "table_chosen_by": list(question.table.samplers),
        "epochs": epochs.tolist(),
        "samplers": samplers,
        "tests": paired({box: {name: values[:, -1] for name, values in by_trials[box].items()} for box in BOXES}),
        "attainment": _attainment(traces),
        "grid": None if grid is None else {"trials": grid.trials, "epochs": grid.epochs, "targets": grid.targets},
    }


def _curve(values: Array) -> dict[str, list[float]]:
    return {key: part.tolist() for key, part in zip(("mean", "low", "high"), mean_interval(values), strict=True)}


def _attainment(traces: Traces) -> dict[str, Any]:
    """Search -> the values of ASR, and by sampler and level the accuracy attained there."""
    labels = list(next(iter(traces.values()))[0])
    found = {}
    for label in labels:
        fronts = {name: [run[label].front for run in runs] for name, runs in traces.items()}
        ends = [asr for runs in fronts.values() for front in runs for asr, _ in front]
        at = np.linspace(0.0, max(ends, default=1.0), STEPS + 1)
        found[label] = {
            "asr": at.tolist(),
            "samplers": {
                name: {f"{level:g}": values for level, values in attainment(runs, at).items()}
                for name, runs in fronts.items()
            },
        }
    return found


def surrogate_text(table: Table, surrogates: Mapping[str, Surrogate]) -> str:
    """What the searches run on: settings and held-out errors."""
    columns = [
        *(Column("attack", words=True), Column("settings"), Column("ASR error"), Column("R2 ")),
        *(Column("accuracy error"), Column("R2"), Column("E error", drop=2), Column("time error", drop=1)),
    ]
    rows = []
    for attack, one in surrogates.items():
        asr, accuracy, cost, time = (one.errors[key] for key in ("asr", "clean_accuracy", "epochs", "seconds"))
        rates = [f"{asr['mae']:.4f}", f"{asr['r2']:.2f}", f"{accuracy['mae']:.4f}", f"{accuracy['r2']:.2f}"]
        rows.append([attack, str(one.settings), *rates, f"{100 * cost['mae']:.0f}%", f"{100 * time['mae']:.0f}%"])
    title = (
        f"Table of {table.label}: the surrogate's mean absolute error on settings that it did not learn from, and the "
        "share R2 of the variance that it explains"
    )
    text = [table_text(title, columns, rows)]
    adaptive = [name for name in table.samplers if name not in ("random", "qmc")]
    if adaptive:
        text.append(textwrap.fill(ADAPTIVE.format(names=", ".join(adaptive)), terminal_width()))
    return "\n".join(text)


def result_text(result: Mapping[str, Any]) -> str:
    """The samplers beside each other, and the tests."""
    grid = result["grid"]
    columns = [
        *(Column("sampler", words=True), Column("hypervolume"), Column("95 %"), Column("corner"), Column("95 % ")),
        *(Column("E", drop=2), Column("hours", drop=3)),
        *(
            [Column("to grid"), Column("reached", drop=1), Column("to corner"), Column("reached ", drop=1)]
            if grid
            else []
        ),
    ]
    rows = []
    for name, one in result["samplers"].items():
        cells = [name]
        for box in BOXES:
            curve = one[box]["over_trials"]
            cells += [f"{curve['mean'][-1]:.4f}", f"{curve['low'][-1]:.4f}..{curve['high'][-1]:.4f}"]
        cells += [f"{one['epochs']:.0f}", f"{one['seconds'] / 3600:.2f}"]
        for found in (one[box]["to_grid"] for box in BOXES if grid):
            late = "-" if found["reached"] is None else "never"
            cells.append(late if found["trials"] is None else str(found["trials"]))
            cells.append("-" if found["reached"] is None else f"{100 * found['reached']:.0f}%")
        rows.append(cells)
    searches = "one search over all attacks" if result["per"] == "all" else "a search for each attack"
    title = (
        f"{result['defense']}, {searches}, {result['trials']} settings, {result['slots']} at a time, {result['seeds']} "
        f"seeds{', told with noise' if result['noise'] else ''}: hypervolume at the end, mean over searches and seeds"
    )
    text = [table_text(title, columns, rows)]
    if grid:
        whole, corner = (grid["targets"][box] for box in BOXES)
        worth = ", ".join(f"{label} {whole[label]:.4f} and {corner[label]:.4f}" for label in whole)
        said = (
            f"grid: {grid['trials']} settings, hypervolume and corner of {worth}. To grid, to corner: settings "
            "after which a search has that much, the median over searches and seeds, and how many of them ever have"
        )
        text.append(textwrap.fill(said, terminal_width()))
    if len(result["samplers"]) > 1:
        text.append(_tests_text(result))
    text.append(textwrap.fill(WITHIN_TABLE, terminal_width()))
    return "\n\n".join(text)


def _tests_text(result: Mapping[str, Any]) -> str:
    columns = [
        *(Column("pair", words=True), Column("hypervolume"), Column("wins"), Column("p")),
        *(Column("corner "), Column("wins ", drop=1), Column("p ")),
    ]
    rows = []
    for whole, corner in zip(*(result["tests"][box] for box in BOXES), strict=True):
        cells = [f"{whole['first']} - {whole['second']}"]
        for one in (whole, corner):
            cells += [f"{one['difference']:+.4f}", f"{one['wins']} of {one['pairs']}", f"{one['p']:.3g}"]
        rows.append(cells)
    title = "Differences over the same seeds; p of Wilcoxon's signed-rank test, two-sided, by Holm over both areas"
    text = table_text(title, columns, rows)
    if result["seeds"] < (needed := seeds_needed(len(rows) * len(BOXES))):
        text += f"\nwith fewer than {needed} seeds none of so many differences can reach p = 0.05: --seeds"
    return text


def check_out(directory: Path) -> None:
    """Refuse a place that belongs to something else (SpecError)."""
    if directory.exists() and not directory.is_dir():
        raise SpecError(f"--out {directory} is a file; name a folder")
    if (directory / SPEC_FILE).exists():
        raise SpecError(f"--out {directory} holds a study; name another folder")


def write(directory: Path, table: Table, surrogates: Mapping[str, Surrogate], result: Mapping[str, Any]) -> list[str]:
    """The result, its pictures and the table itself; the names of the files."""
    export(table, directory)
    pictures = {"hypervolume.png": curves_png(result), "attainment.png": attainment_png(result)}
    if (found := dependence(table, surrogates)) is not None:
        pictures["dependence.png"] = dependence_png(table.label, found, table)
    for name, figure in pictures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=200)
        write_atomically(directory / name, content.getvalue())
    write_atomically(directory / RESULT_FILE, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return [RESULT_FILE, *pictures, "table.csv", "table.json"]
