"""The picture of the front shows every setting once, at its report-half values, on the page as in print."""

from __future__ import annotations

from typing import Any

import pytest

from study.record.columns import to_frame
from study.report.figures.front_marks import FrontPicture, Marks, front_picture
from study.report.figures.front_page import front_plotly
from study.report.figures.front_print import front_png
from study.report.lead import attack_lead
from study.report.sections import before_after
from study.results.fronts import fronts
from study.results.settings import aggregate
from study.results.verdicts import verdicts
from tests.study.rows import failed_row, made_up_study, make_row, point


def test_a_setting_that_was_dropped_in_a_race_speaks_for_no_model_but_its_own() -> None:
    """It ended first, on the two easy victims of six."""
    victims = [0.99, 0.99, 0.9, 0.9, 0.9, 0.9]
    before = [{f"asr_before{half}": asr for half in ("", "_report")} | {"seed": i} for i, asr in enumerate(victims)]
    rows = [point(1, 0.3, 0.98, **before[i], dropped_by="badnets/super_ft/0000") for i in (0, 1)]
    rows += [point(0, 0.1, 0.9, **one) for one in before]
    frame = to_frame(rows)
    settings, members = aggregate(frame), fronts(frame)
    (first, *_) = before_after(settings, members)
    assert first["ASR"].startswith("93.0 % [")
    assert "93.0 % of triggered images" in attack_lead(settings, verdicts(settings, members), frame)
    drawn = _by_kind(front_picture("badnets", settings, members))
    assert drawn["baseline"].y == pytest.approx((0.93,))
    assert 0.3 not in [y for marks in drawn.values() for y in marks.y]


def _picture(rows: list[dict[str, Any]]) -> FrontPicture:
    frame = to_frame(rows)
    return front_picture("badnets", aggregate(frame), fronts(frame))


def _by_kind(picture: FrontPicture) -> dict[str, Marks]:
    return {marks.kind: marks for marks in picture.marks}


def test_the_front_is_drawn_at_report_coordinates_and_the_dashed_line_at_search_coordinates() -> None:
    rows = [
        point(0, 0.2, 0.95, asr_report=0.25, clean_accuracy_report=0.94),
        point(1, 0.1, 0.90, asr_report=0.12, clean_accuracy_report=0.91),
        point(2, 0.5, 0.85),
    ]
    marks = _by_kind(_picture(rows))
    assert list(zip(marks["front"].x, marks["front"].y, strict=True)) == [(0.91, 0.12), (0.94, 0.25)]
    assert list(zip(marks["front_search"].x, marks["front_search"].y, strict=True)) == [(0.90, 0.1), (0.95, 0.2)]
    assert len(marks["trials"].x) == 3


def test_a_chosen_setting_that_others_beat_on_the_report_half_is_off_the_line() -> None:
    rows = [point(0, 0.2, 0.95, asr_report=0.0), point(1, 0.1, 0.90)]
    marks = _by_kind(_picture(rows))
    assert (marks["front"].x, marks["front"].y) == ((0.95,), (0.0,))
    assert (marks["front_behind"].x, marks["front_behind"].y) == ((0.90,), (0.1,))


def test_published_point_baselines_and_victim_have_marks_of_their_own() -> None:
    rows = [point(0, 0.3, 0.9, published=True), point(1, 0.1, 0.95), point(2, 1.0, 0.0, status="diverged")]
    rows += [make_row(f"badnets/{name}/baseline") for name in ("ft", "scratch", "nad", "abl")]
    picture = _picture(rows)
    shapes = {m.name: m.shape for m in picture.marks if m.kind in ("baseline", "published")}
    assert set(shapes) == {"super_ft: published setting", "before repair"} | {
        f"{name} (baseline)" for name in ("ft", "scratch", "nad", "abl")
    }
    assert len(set(shapes.values())) == len(shapes)
    assert _by_kind(picture)["published"].x == (0.9,)
    assert _by_kind(picture)["diverged"].y == (1.0,)
    with_none = _picture([*rows, make_row("badnets/none/baseline")])
    names = [m.name for m in with_none.marks]
    assert "none (no repair)" in names
    assert "before repair" not in names


def test_plotly_and_matplotlib_draw_the_same_points() -> None:
    picture = _picture(made_up_study(attacks=("badnets",), trials=15))
    page, print_ = front_plotly(picture), front_png(picture)
    assert [(tuple(t.x), tuple(t.y), t.name) for t in page.data] == [(m.x, m.y, m.name) for m in picture.marks]
    for axis in print_.axes:
        lines = {line.get_label(): line for line in axis.get_lines() if not str(line.get_label()).startswith("_")}
        drawn = {name: (tuple(line.get_xdata()), tuple(line.get_ydata())) for name, line in lines.items()}
        assert drawn == {m.name: (m.x, m.y) for m in picture.marks}


def test_hover_tells_settings_status_and_cost() -> None:
    rows = [point(0, 0.1, 0.95, published=True, **{"param.lr_max1": 0.1, "param.iterations": 500})]
    (text,) = _by_kind(_picture(rows))["trials"].hover
    for words in ("badnets/super_ft/0000", "status ok", "lr_max1 = 0.1", "iterations = 500", "50.91 E", "ASR 10.0 %"):
        assert words in text


def test_every_outcome_has_a_mark_of_its_own_and_a_collapsed_model_is_off_the_front() -> None:
    rows = [point(0, 0.2, 0.9), point(1, 1.0, 0.0, status="diverged"), point(2, 0.99, 0.98, status="abstained")]
    rows += [point(3, 0.0, 0.1, collapsed=True), failed_row("badnets/super_ft/0004")]
    picture = _picture(rows)
    marks = _by_kind(picture)
    places = {kind: (marks[kind].x, marks[kind].y) for kind in ("trials", "diverged", "abstained", "collapsed")}
    assert places == {
        "trials": ((0.9,), (0.2,)),
        "diverged": ((0.0,), (1.0,)),
        "abstained": ((0.98,), (0.99,)),
        "collapsed": ((0.1,), (0.0,)),
    }
    assert len({marks[kind].shape for kind in places}) == 4
    assert marks["front"].x == (0.9, 0.98)
    assert picture.outside == 2


def test_many_searches_have_one_legend_entry_each_and_colour_and_shape_never_repeat() -> None:
    names = [f"d{i:02d}" for i in range(14)]
    rows = [make_row(f"badnets/{name}/{i:04d}", asr=0.1 + 0.3 * i) for name in names for i in range(2)]
    rows.append(make_row("badnets/d00/0002", asr=1.0, clean_accuracy=0.0, status="diverged"))
    picture = _picture(rows)
    assert picture.crowded
    listed = [m for m in picture.marks if m.listed]
    assert [m.name for m in listed[:2]] == ["d00 (3 settings, 1 diverged)", "d01 (2 settings)"]
    assert len(listed) == 14 + 1  # and before repair
    styles = {(m.owner, m.colour, m.shape) for m in picture.marks if m.kind == "front"}
    assert len({style[1:] for style in styles}) == len(styles) == 14
    drawn = front_plotly(picture)
    assert [t.name for t in drawn.data if t.showlegend] == [m.name for m in listed]
    assert all(t.legendgroup == m.owner for t, m in zip(drawn.data, picture.marks, strict=True) if m.owner)
    (legend,) = front_png(picture).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[: len(listed)] == [m.name for m in listed]
    assert "front (report half)" in texts[len(listed) :]


def test_controls_are_marked_and_are_no_part_of_what_was_before_repair() -> None:
    rows = [point(0, 0.2, 0.9), make_row("badnets/ft/control", role="control", asr_before_report=0.0)]
    picture = _picture(rows)
    assert _by_kind(picture)["control"].name == "ft (clean control)"
    (before,) = [m for m in picture.marks if m.name == "before repair"]
    assert before.y == (0.99,)


def test_one_ruined_trial_does_not_squeeze_the_overview() -> None:
    rows = [point(i, 0.08 * i, 0.95 + 0.001 * i) for i in range(12)] + [point(20, 1.0, 0.0, status="diverged")]
    picture = _picture(rows)
    assert picture.overview[0][0] > 0.9
    assert picture.outside == 1
    (low, high), (bottom, top) = picture.corner
    assert 0.9 < low < high <= 1.01
    assert bottom < 0 < top < 0.25


def test_an_empty_corner_says_so() -> None:
    texts = [
        [text.get_text() for text in front_png(_picture([point(0, asr, 0.98)])).axes[1].texts] for asr in (0.5, 0.1)
    ]
    assert texts == [["no setting is in this corner"], []]


def test_many_baselines_are_named_beside_their_marks_and_look_different_each() -> None:
    names = [f"d{i:02d}" for i in range(18)]
    rows = [make_row(f"badnets/{name}/baseline", asr=0.05 * i) for i, name in enumerate(names)]
    picture = _picture(rows)
    marks = [m for m in picture.marks if m.kind == "baseline" and m.name != "before repair"]
    assert [m.label for m in marks] == names
    assert len({(m.colour, m.shape) for m in marks}) == 18
    written = [text.get_text() for text in front_png(picture).axes[0].texts]
    assert written == names
    assert [trace.text for trace in front_plotly(picture).data if trace.text] == names


def test_few_baselines_need_no_names_beside_their_marks() -> None:
    rows = [make_row(f"badnets/{name}/baseline") for name in ("none", "ft", "scratch")]
    assert not any(m.label for m in _picture(rows).marks)


def test_beside_searches_baselines_without_a_colour_of_their_own_are_grey() -> None:
    rows = [point(0, 0.2, 0.9), make_row("badnets/nad/baseline"), make_row("badnets/abl/baseline")]
    grey = {m.colour for m in _picture(rows).marks if m.name in ("nad (baseline)", "abl (baseline)")}
    assert grey == {"#777777"}
