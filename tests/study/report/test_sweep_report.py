"""The report of a sweep: all combinations in one figure and one table, each with a section; curves along repairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.record.columns import to_frame
from study.record.curves import read_curves, write_curve
from study.report.figures.curve import curve_lines
from study.report.figures.sweep import BEFORE, axis_of, sweep_panels, sweep_png, sweep_series
from study.report.sweep import sweep_table
from study.report.write import write_report
from study.results.fronts import fronts
from study.results.rows import is_shared
from study.results.settings import aggregate
from study.spec.combinations import as_json, combinations_of, names_of
from tests.study.rows import make_row

SWEEP = {"clean_fraction": [0.1, 0.2, 1.0], "victim.lr": [0.01, 0.1]}
SPEC = {"name": "swept", "attacks": ["badnets"], "baselines": ["none", "ft"], "dataset": "digits", "sweep": SWEEP}


def swept_rows(seeds: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    """ASR after ft falls with the clean fraction, and is 0.1 higher at the higher rate and under seed 1."""
    rows = []
    for name, values in zip(names_of(SWEEP), combinations_of(SWEEP), strict=True):
        for seed in seeds:
            common = {"combination": name, "swept": as_json(values), "seed": seed, "search": None, "role": "baseline"}
            asr = 0.8 - 0.7 * values["clean_fraction"] + 0.1 * (values["victim.lr"] == 0.1) + 0.1 * seed
            for label, rate in (("none", 0.99), ("ft", asr)):
                row = make_row(f"badnets/{label}/baseline", asr=rate, **common)
                rows.append(row | {"trial": f"{name}/badnets/{label}/baseline"})
    return rows


def test_the_axis_is_the_number_with_most_values() -> None:
    assert axis_of(SWEEP) == "clean_fraction"
    assert axis_of({"dataset": ["a", "b", "c"], "victim.lr": [1, 2]}) == "victim.lr"
    assert axis_of({"dataset": ["a", "b"], "model": ["x", "y", "z"]}) == "model"


def test_a_line_is_a_defense_over_the_axis_and_its_band_spans_the_runs() -> None:
    table = aggregate(to_frame(swept_rows()))
    values = dict(zip(names_of(SWEEP), combinations_of(SWEEP), strict=True))
    (panels,) = sweep_panels(table, SWEEP, values)
    assert (panels.key, panels.values) == ("clean_fraction", [0.1, 0.2, 1.0])
    assert [title for title, _ in panels.columns] == ["victim.lr 0.01", "victim.lr 0.1"]
    before, ft = panels.columns[1][1]
    assert (before.defense, ft.defense) == (BEFORE, "ft")
    mean, least, most = ft.rates["asr_report"]
    assert ft.place == [0, 1, 2]
    assert mean == pytest.approx([0.88, 0.81, 0.25])
    assert [high - low for low, high in zip(least, most, strict=True)] == pytest.approx([0.1] * 3)
    assert before.rates["asr_report"][0] == pytest.approx([0.99] * 3)


def test_a_label_that_is_a_baseline_and_searched_has_one_point_at_each_place() -> None:
    rows = swept_rows((0,))
    for row in [row for row in rows if row["defense_label"] == "ft"]:
        trial = row["trial"].replace("baseline", "0000")
        rows.append(row | {"trial": trial, "role": "search", "search": "badnets/ft", "published": True, "asr": 0.5})
    places = {name: index for index, name in enumerate(names_of(SWEEP)[::2])}
    _, ft = sweep_series(aggregate(to_frame(rows)), places)
    assert ft.place == [0, 1, 2]


def test_more_columns_than_fit_and_third_keys_make_more_figures() -> None:
    sweep = {"a.x": list(range(8)), "a.y": list(range(7)), "dataset": ["p", "q"]}
    values = dict(zip(names_of(sweep), combinations_of(sweep), strict=True))
    found = sweep_panels(aggregate(to_frame([])), sweep, values)
    assert [(one.where, len(one.columns)) for one in found] == [
        ("dataset p", 5),
        ("dataset p", 2),
        ("dataset q", 5),
        ("dataset q", 2),
    ]


def test_texts_make_an_axis_too() -> None:
    sweep = {"dataset": ["digits", "svhn"]}
    rows = [row for row in swept_rows((0,)) if json.loads(row["swept"])["victim.lr"] == 0.01][:4]
    names = names_of(sweep)
    for place, row in enumerate(rows):
        row["combination"] = names[place // 2]
    table = aggregate(to_frame(rows))
    assert [line.place for line in sweep_series(table, dict(zip(names, range(2), strict=True)))] == [[0, 1], [0, 1]]
    (panels,) = sweep_panels(table, sweep, {name: {"dataset": name} for name in ()} | _values(sweep))
    axis = sweep_png("x", panels).axes[-1]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["digits", "svhn"]


def _values(sweep: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    return dict(zip(names_of(sweep), combinations_of(sweep), strict=True))


def test_fronts_and_means_never_mix_combinations() -> None:
    rows = []
    for name, asr in (("a", 0.5), ("b", 0.1)):
        row = make_row("badnets/super_ft/0000", asr=asr, combination=name, search=f"{name}/badnets/super_ft")
        rows.append(row | {"trial": f"{name}/badnets/super_ft/0000"})
    frame = to_frame(rows)
    assert aggregate(frame)[["combination", "asr"]].values.tolist() == [["a", 0.5], ["b", 0.1]]
    # The point of b beats that of a, and both are fronts.
    assert fronts(frame)["combination"].tolist() == ["a", "b"]


def test_a_search_over_all_attacks_is_pooled_within_its_combination() -> None:
    rows = []
    for name, base in (("a", 0.1), ("b", 0.5)):
        for attack, more in (("badnets", 0.0), ("blended", 0.2)):
            row = make_row(
                "all/super_ft/0000", asr=base + more, combination=name, search=f"{name}/all/super_ft", models=2
            )
            rows.append(row | {"trial": f"{name}/all/super_ft/0000", "attack": attack})
    frame = to_frame(rows)
    assert is_shared(frame)
    assert aggregate(frame, across_attacks=True)["asr"].tolist() == pytest.approx([0.2, 0.6])
    assert aggregate(frame)["models"].tolist() == [1] * 4
    # Told by the label alone, where one attack's victims hold no backdoor and have no row.
    assert is_shared(to_frame([row for row in rows if row["attack"] == "badnets"]))


def curve(seed: int, *, teacher: bool = False) -> list[dict[str, Any]]:
    points = [
        {"step": 10 * k, "passes": 2.5 * k, "stage": "fit", "kept": True, "asr_report": 0.9 * 0.5**k + 0.02 * seed}
        | {"clean_accuracy_report": 0.95 - 0.01 * k}
        for k in range(4)
    ]
    return [*points, {**points[1], "kept": False, "asr_report": 0.0}] if teacher else points


def test_a_curve_is_a_mean_over_runs_without_the_teacher(tmp_path: Path) -> None:
    rows = [row for row in swept_rows() if row["combination"] == names_of(SWEEP)[0] and "/ft/" in row["trial"]]
    for row in rows:
        write_curve(tmp_path, row, curve(row["seed"], teacher=True))
    (line,) = curve_lines(read_curves(tmp_path, rows))
    assert (line.name, line.epochs) == ("ft", [0.0, 2.5, 5.0, 7.5])
    mean, least, most = line.rates["asr_report"]
    assert mean == pytest.approx([0.91, 0.46, 0.235, 0.1225])
    assert [high - low for low, high in zip(least, most, strict=True)] == pytest.approx([0.02] * 4)


def test_the_page_holds_the_sweep_every_combination_and_the_curves(tmp_path: Path) -> None:
    rows = swept_rows((0,))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        write_curve(tmp_path, row, curve(0))
    page = write_report(tmp_path).read_text()
    assert '<section id="page-sweep"><h2>What the sweep shows: clean_fraction and victim.lr</h2>' in page
    headings = [f"badnets, clean_fraction {fraction:g}, victim.lr {lr}" for fraction, lr in _pairs()]
    places = [page.index(f"<h2>{heading}</h2>") for heading in headings]
    assert places == sorted(places)
    pictures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert "sweep_clean_fraction" in pictures
    assert sum(name.startswith("curve_badnets_clean_fraction_") for name in pictures) == 6
    assert "could not be drawn" not in page
    table = sweep_table(aggregate(to_frame(rows)), {name: name for name in names_of(SWEEP)})
    assert len(table) == 12
    assert not math.isnan(float(table[0]["ASR"].split()[0]))


def _pairs() -> list[tuple[float, float]]:
    return [(fraction, lr) for fraction in SWEEP["clean_fraction"] for lr in SWEEP["victim.lr"]]
