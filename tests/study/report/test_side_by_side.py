"""Figures of all attacks and data sets beside each other, as the paper prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.colors import same_color

from study.record.columns import to_frame
from study.record.curves import write_curve
from study.report.figures.curve import Line, curve_panels_png, line_looks
from study.report.figures.plane import BEFORE, plane_marks, plane_png
from study.report.figures.reinjection import model_looks
from study.report.figures.style import FULL, GREY
from study.report.figures.sweep import DOTTED, Panels, Series, sweep_png
from study.report.write import write_report
from study.results.settings import aggregate
from study.spec.combinations import as_json, combinations_of, names_of
from study.spec.schema import MAY_CHANGE
from study.spec.yaml_io import SpecError
from tests.study.rows import make_row
from tests.study.test_aftermath import curve as relapse
from tests.study.tiny import tiny_spec

SWEEP = {"dataset": ["cifar10", "gtsrb"]}


def rows_of(attack: str, *, seeds: tuple[int, ...] = (0, 1), **common: Any) -> list[dict[str, Any]]:
    """A model before repair, two repairs, and a clean model; ASR of ft is 0.5 and 0.7 under the two seeds."""
    found = []
    for seed in seeds:
        for label, role, asr in (
            ("none", "baseline", 0.99),
            ("ft", "baseline", 0.5 + 0.2 * seed),
            ("super_ft", "baseline", 0.02),
            ("none", "control", 0.01),
        ):
            row = make_row(f"{attack}/{label}/{role}", asr=asr, seed=seed, role=role, search=None, **common)
            found.append(row | {"trial": f"{common.get('combination', '')}/{attack}/{label}/{role}"})
    return found


def test_a_mark_is_the_mean_of_a_defense_and_its_whiskers_span_the_runs() -> None:
    marks = plane_marks(aggregate(to_frame(rows_of("badnets") + rows_of("blended"))))
    assert list(marks) == ["badnets", "blended"]
    of = {mark.name: mark for mark in marks["badnets"]}
    assert set(of) == {BEFORE, "ft", "super_ft", "clean model"}
    assert of["ft"].asr == pytest.approx((0.6, 0.5, 0.7))
    assert of[BEFORE].asr == (0.99,) * 3
    assert of["clean model"].asr == pytest.approx((0.01,) * 3)


def test_of_a_search_the_published_setting_is_shown_alone() -> None:
    rows = [make_row("badnets/super_ft/0000", asr=0.3, published=True), make_row("badnets/super_ft/0001", asr=0.1)]
    (marks,) = plane_marks(aggregate(to_frame(rows))).values()
    assert [(mark.name, mark.asr[0]) for mark in marks] == [(BEFORE, 0.99), ("super_ft", 0.3)]
    # The same label as a baseline too is one mark, the baseline's.
    rows.append(make_row("badnets/super_ft/baseline", asr=0.2))
    (marks,) = plane_marks(aggregate(to_frame(rows))).values()
    assert [(mark.name, mark.asr[0]) for mark in marks] == [(BEFORE, 0.99), ("super_ft", 0.2)]


def test_what_is_set_apart_is_grey_and_open_and_a_ruined_model_is_struck_through() -> None:
    rows = rows_of("badnets") + rows_of("blended")
    for row in rows:
        row["collapsed"] = row["defense_label"] == "super_ft"
    figure = plane_png("x", plane_marks(aggregate(to_frame(rows))), ["ft"])
    assert [axis.get_title() for axis in figure.axes] == ["badnets", "blended"]
    drawn = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    assert same_color(drawn["ft"].get_color(), GREY)
    assert same_color(drawn["ft"].get_markerfacecolor(), "white")
    assert same_color(drawn["clean model"].get_color(), GREY)
    assert not same_color(drawn["super_ft"].get_color(), GREY)
    struck = [line for line in figure.axes[0].get_lines() if line.get_marker() == "_"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in struck] == [
        (drawn["super_ft"].get_xdata()[0], drawn["super_ft"].get_ydata()[0])
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [BEFORE, "super_ft", "ft", "clean model"]


def test_a_line_has_one_look_in_all_panels_and_those_apart_are_broken() -> None:
    def line(name: str) -> Line:
        rates = {column: ([0.9, 0.5], [0.9, 0.5], [0.9, 0.5]) for column in ("asr_report", "clean_accuracy_report")}
        return Line(name, [0.0, 1.0], rates)

    panels = {"badnets": [line("ft"), line("super_ft")], "blended": [line("super_ft"), line("ft_peak")]}
    figure = curve_panels_png("x", panels, ["ft_peak"])
    assert len(figure.axes) == 4
    looks = [
        {str(one.get_label()): (one.get_color(), one.get_linestyle()) for one in axis.get_lines()}
        for axis in figure.axes
    ]
    assert looks[0]["super_ft"] == looks[1]["super_ft"] == looks[3]["super_ft"]
    assert looks[0]["ft"][0] != looks[0]["super_ft"][0]
    assert looks[1]["ft_peak"] == (GREY, "--")


FIVE = ("super_ft", "ft", "ft_peak", "ft_peak_constant", "scratch")


def test_of_a_sweep_no_two_defenses_look_alike_and_those_apart_are_thin_and_broken() -> None:
    series = [Series("badnets", name, [0], {}) for name in (*FIVE, BEFORE)]
    looks = Panels("x", [1], [("", series)], order=FIVE, apart=FIVE[1:]).looks
    assert list(looks) == list(FIVE)
    assert len({(look.dashes, look.mark) for look in looks.values()}) == 5
    assert [name for name, look in looks.items() if look.thin] == list(FIVE[1:])
    assert looks["super_ft"].dashes == FULL
    assert not {look.dashes for look in looks.values() if look.thin} & {FULL, ":", DOTTED}
    assert len({look.dashes for look in looks.values() if look.thin}) == 4
    # Without a word about it all but the first are apart; two that the study asks about differ by their marks.
    alone = Panels("x", [1], [("", series)], order=FIVE).looks
    assert [name for name, look in alone.items() if not look.thin] == ["super_ft"]
    two = Panels("x", [1], [("", series)], order=FIVE, apart=FIVE[2:]).looks
    assert (two["ft"].dashes, two["ft"].thin) == (FULL, False)
    assert two["ft"].mark != two["super_ft"].mark
    many = [f"d{number}" for number in range(30)]
    looks = Panels("x", [1], [("", [Series("badnets", name, [0], {}) for name in many])], order=many).looks
    assert len({(look.dashes, look.mark) for look in looks.values()}) == 30
    assert [name for name, look in looks.items() if look.dashes == FULL] == ["d0"]


def test_the_legends_of_a_sweep_have_an_entry_for_each_attack_and_one_for_each_defense() -> None:
    attacks = ("badnets", "blended", "lf", "inputaware", "wanet")
    rates = {column: ([0.9, 0.5], [0.9, 0.5], [0.9, 0.5]) for column in ("asr_report", "clean_accuracy_report")}
    series = [Series(attack, name, [0, 1], rates) for attack in attacks for name in (BEFORE, *FIVE)]
    figure = sweep_png("x", Panels("x", [1, 2], [("cifar10", series), ("gtsrb", series)], order=FIVE, apart=FIVE[1:]))
    shown = {legend.get_title().get_text(): legend for legend in figure.legends}
    texts = {head: [text.get_text() for text in legend.get_texts()] for head, legend in shown.items()}
    assert texts == {"attack": list(attacks), "defense": [BEFORE, *FIVE]}
    for axis in figure.axes:
        lines = {str(line.get_label()): line for line in axis.get_lines()}
        colours = [lines[f"{attack}, scratch"].get_color() for attack in attacks]
        assert colours == [line.get_color() for line in shown["attack"].get_lines()]
        for name, told in zip((BEFORE, *FIVE), shown["defense"].get_lines(), strict=True):
            drawn = lines[f"wanet, {name}"]
            looks = [(one.get_linestyle(), one.get_linewidth(), one.get_marker()) for one in (drawn, told)]
            assert looks[0] == looks[1]


def test_what_is_apart_is_grey_in_a_re_injection_and_unlike_all_that_is_grey_there() -> None:
    apart = ["ft_peak", "ft_peak_constant", "scratch"]
    names = [
        "undefended",
        "abl",
        "ft_peak",
        "ft_peak_constant",
        "super_ft",
        "scratch",
        "clean model",
        "clean model, ft",
    ]
    looks = model_looks(names, apart)
    grey = {name: look for name, look in looks.items() if same_color(look.colour, GREY)}
    assert set(grey) == {"undefended", *apart, "clean model", "clean model, ft"}
    assert len({look.dashes for look in grey.values()}) == len(grey)
    assert grey["ft_peak"].open
    assert looks["abl"].colour != looks["super_ft"].colour
    many = model_looks([f"d{number}" for number in range(25)], [f"d{number}" for number in range(25)])
    assert len({(look.dashes, look.mark) for look in many.values()}) == 28


def test_more_lines_and_marks_apart_than_there_are_dashes_and_shapes_still_differ() -> None:
    names = [f"d{number:02}" for number in range(12)]
    looks = line_looks(names, names)
    assert len({(str(look["linestyle"]), look.get("marker")) for look in looks.values()}) == 12
    rows = [make_row(f"badnets/{name}/baseline", search=None, role="baseline") for name in names]
    (axis,) = plane_png("x", plane_marks(aggregate(to_frame(rows))), names).axes
    marks = {(line.get_marker(), line.get_markerfacecolor()) for line in axis.get_lines() if line.get_label() in names}
    assert len(marks) == 12


def written(tmp_path: Path, rows: list[dict[str, Any]], **spec: Any) -> tuple[str, set[str]]:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "x", "attacks": ["badnets"], **spec}))
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path).read_text()
    assert "could not be drawn" not in page
    return page, {path.stem for path in (tmp_path / "figures").iterdir()}


def test_one_attack_on_one_data_set_has_no_panels(tmp_path: Path) -> None:
    page, pictures = written(tmp_path, rows_of("badnets"))
    assert "beside each other" not in page
    assert not {name for name in pictures if name.startswith(("plane_", "curves_", "reinjections_"))}


def test_the_page_has_them_for_every_data_set_and_they_go_with_their_rows(tmp_path: Path) -> None:
    rows = []
    for name, values in zip(names_of(SWEEP), combinations_of(SWEEP), strict=True):
        common = {"combination": name, "swept": as_json(values), "dataset": values["dataset"]}
        common |= {"reinjection": json.dumps([relapse([0.1, 0.2, 0.9, 1.0])])}
        rows += [row for attack in ("badnets", "blended") for row in rows_of(attack, **common)]
    for row in rows:
        if row["role"] == "baseline":
            points = [
                {"step": 10 * k, "passes": float(k), "stage": "fit", "kept": True, "asr_report": 0.9 - 0.2 * k}
                | {"clean_accuracy_report": 0.9}
                for k in range(3)
            ]
            write_curve(tmp_path, row, points)
    page, pictures = written(tmp_path, rows, sweep=SWEEP, set_apart=["ft"])
    assert '<section id="page-panels"><h2>All attacks beside each other</h2>' in page
    assert '<a href="#page-panels">' in page
    assert "what the study sets apart (ft)" in page
    wanted = {f"{kind}_dataset_{name}" for kind in ("plane", "curves") for name in ("cifar10", "gtsrb")}
    assert wanted | {"reinjections_badnets", "reinjections_blended"} <= pictures
    # With one attack left nothing stands beside another.
    _, pictures = written(tmp_path, [row for row in rows if row["attack"] == "badnets"], sweep=SWEEP)
    assert not wanted & pictures
    assert "reinjections_badnets" in pictures
    assert "reinjections_blended" not in pictures


def test_no_figure_draws_a_victim_without_a_backdoor(tmp_path: Path) -> None:
    rows = []
    for attack in ("badnets", "blended", "wanet"):
        way = {"statistics": "refreshed", "share_half": 0.5, "barrier": 0.1, "accuracy_lowest": 0.5}
        way |= {"share": [0.0, 1.0], "asr": [0.1, 0.9], "clean_accuracy": [0.9, 0.9]}
        common = {"reinjection": json.dumps([relapse([0.1, 0.2, 0.9, 1.0])]), "connectivity": json.dumps([way])}
        rows += rows_of(attack, **common)
    points = [
        {"step": k, "passes": float(k), "stage": "fit", "kept": True, "asr_report": 0.5, "clean_accuracy_report": 0.9}
        for k in range(3)
    ]
    for row in rows:
        write_curve(tmp_path, row, points)
        if row["attack"] == "wanet" and (row["seed"] == 1 or row["defense_label"] == "ft"):
            row["status"] = "backdoor_not_implanted"  # of seed 0 the row of one repair alone says so
    _, pictures = written(tmp_path, rows)
    kinds = ("curve", "reinjection", "connectivity")
    assert {f"{kind}_{attack}" for kind in kinds for attack in ("badnets", "blended")} <= pictures
    assert not {f"{kind}_wanet" for kind in kinds} & pictures
    assert "curves_all" in pictures


def test_what_is_set_apart_must_be_run_and_may_change_in_a_begun_study() -> None:
    with pytest.raises(SpecError, match=r"set_apart: 'scrach' is neither .* did you mean 'scratch'"):
        tiny_spec("baselines=[ft, scratch]", "set_apart=[scrach]")
    assert tiny_spec("baselines=[ft, scratch]", "set_apart=[scratch]").set_apart == ["scratch"]
    assert "set_apart" in MAY_CHANGE
