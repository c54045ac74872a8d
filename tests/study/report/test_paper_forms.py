"""The paper's figures at full size: their form, drawn of made-up rows for every trial that a recipe plans."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from study.plan.jobs import make_plan
from study.record.columns import to_frame
from study.record.curves import read_curves, write_curve
from study.report import side_by_side as panels
from study.report import sweep
from study.report.figures.curve import curve_lines, curve_png
from study.report.page import places_of
from study.results.aftermath import CLEAN_CONTROL, NOT_REPAIRED, reinjection_curves
from study.results.rows import backdoored
from study.results.settings import aggregate_all
from study.spec.load import load_spec, recipe_text
from study.spec.schema import StudySpec
from tests.study.rows import make_row
from tests.study.spec.test_paper import FULL
from tests.study.test_aftermath import curve as relapse

BEFORE = "before repair"


@dataclass
class Drawn:
    """What a recipe's report draws of all attacks and data sets, by the file's name.

    Args:
        spec: of the recipe.
        figures: as they were before they became files.
        curves: of `read_curves`.
    """

    spec: StudySpec
    figures: dict[str, Figure]
    curves: pd.DataFrame


def drawn(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Report of made-up rows: one for every planned trial, with a curve and a re-injection where they are asked for."""
    spec = load_spec(name)
    rows, rng = [], np.random.default_rng(0)
    for job in make_plan(spec).baselines:
        asr = 0.99 if job.cell.defense == "none" else float(rng.uniform(0, 0.9))
        row = make_row(f"{job.cell.attack}/{job.cell.label}/x", asr=asr) | job.cell.columns()
        row |= {"trial": job.trial, "role": job.role, "search": None, "published": job.published}
        if job.aftermath is not None:
            row["reinjection"] = json.dumps([relapse([asr, 0.9, 0.95, 1.0], arm="original rate")])
        if job.curve is not None and job.cell.defense != "none":
            at_step = {"stage": "fit", "kept": True, "asr_report": asr, "clean_accuracy_report": 0.9}
            write_curve(folder, row, [{"step": step, "passes": float(step), **at_step} for step in range(3)])
        rows.append(row)
    frame = to_frame(rows)
    table = aggregate_all(frame)
    written = spec.model_dump(mode="json")
    kept: list[Figure] = []
    for module in (panels, sweep):
        # A figure stands in its own place: rendering a hundred would take minutes and show nothing to a test.
        monkeypatch.setattr(module, "as_png", lambda figure: kept.append(figure) or str(len(kept) - 1).encode())
    _, swept = sweep.sweep_section(table, frame, written)
    curves, relapses = read_curves(folder, rows), reinjection_curves(backdoored(frame))
    # The thirty combinations of a figure over a number have planes of their own, which nobody names.
    named = re.search(rf"figures/({'|'.join(panels.NAMES)})_", recipe_text(name))
    places = places_of(table, written) if named else []
    beside = panels.side_by_side(table, frame, curves, relapses, places, spec.set_apart)[1]
    return Drawn(spec, {file: kept[int(place)] for file, place in (swept | beside).items()}, curves)


def named_in_header(spec: StudySpec, text: str) -> set[str]:
    """Figures that the header of a recipe names, with each data set and attack in the place of their words."""
    found = set()
    for pattern in re.findall(r"figures/(\w+)\.png", " ".join(text.split("\nname:")[0].replace("\n#", "").split())):
        for dataset in spec.sweep.get("dataset", [spec.dataset]):
            found |= {pattern.replace("DATASET", dataset).replace("ATTACK", attack) for attack in spec.attacks}
    return found


def entries(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_draws_the_figures_of_its_header_in_the_papers_form(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = drawn(name, tmp_path, monkeypatch)
    spec, figures = found.spec, found.figures
    datasets = spec.sweep.get("dataset", [spec.dataset])
    repairs = [label for label in spec.baselines if label != "none"]
    wanted = named_in_header(spec, recipe_text(name))
    assert wanted or "table1" in name, "its figure is a table"
    alone = {file for file in wanted if file.startswith("curve_")}  # drawn by the sections of single attacks
    assert wanted - alone <= set(figures)
    if alone:
        own = found.curves[found.curves["attack"] == spec.attacks[0]]
        lines = curve_lines(own[own["combination"] == own["combination"].iloc[0]])
        assert set(repairs) <= set(entries(curve_png("x", lines, spec.set_apart)))
    for file in wanted - alone:
        figure = figures[file]
        shown = entries(figure)
        if file.startswith("sweep_"):
            assert titles(figure) == datasets
            assert set(shown) == {*spec.attacks, BEFORE, *repairs}
            assert len(shown) == len(spec.attacks) + 1 + len(repairs)
            assert len(figure.axes) == 2 * len(datasets)
        elif file.startswith("reinjections_"):
            assert [title.partition(":")[0] for title in titles(figure)] == [f"dataset {one}" for one in datasets]
            assert sorted(shown) == sorted([*repairs, NOT_REPAIRED, CLEAN_CONTROL])
        else:
            assert sorted(titles(figure)) == sorted(spec.attacks)
            assert set(repairs) <= set(shown)
            if file.startswith("plane_"):
                assert (BEFORE in shown, len(figure.axes)) == (True, len(spec.attacks))
            else:
                assert len(figure.axes) == 2 * len(spec.attacks)
        assert len(shown) == len(set(shown))
