"""Lines of hypervolume over trials carry both halves and the published point."""

from __future__ import annotations

import pytest

from study.record.columns import to_frame
from study.report.figures.hypervolume import _published, hypervolume_plotly, hypervolume_png, hypervolume_series
from study.results.fronts import hypervolume_over_trials
from study.results.settings import candidates
from tests.study.rows import point


def test_hypervolume_lines_carry_both_halves_and_the_published_point() -> None:
    history = hypervolume_over_trials(to_frame([point(0, 0.5, 0.9, asr_report=0.6), point(1, 0.2, 0.9)]))
    lines = hypervolume_series(history, {"super_ft": 0.3})
    assert [line["y"] for line in lines] == [
        pytest.approx([0.4 * 0.9, 0.8 * 0.9]),
        pytest.approx([0.5 * 0.9, 0.8 * 0.9]),
        [0.3, 0.3],
    ]
    assert [line["style"] for line in lines] == ["solid", "dashed", "dotted"]
    drawn = [list(line.get_ydata()) for line in hypervolume_png("x", lines).axes[0].get_lines()]
    assert drawn == [line["y"] for line in lines]
    assert [list(trace.y) for trace in hypervolume_plotly(lines).data] == drawn


def test_the_last_value_of_a_search_is_marked_and_the_published_line_is_not() -> None:
    history = hypervolume_over_trials(to_frame([point(0, 0.5, 0.9), point(1, 0.2, 0.9)]))
    lines = hypervolume_series(history, {"super_ft": 0.3})
    drawn = hypervolume_png("x", lines).axes[0].get_lines()
    assert [(line.get_marker(), line.get_markevery()) for line in drawn[:2]] == [("o", [-1])] * 2
    assert drawn[2].get_marker() == "None"
    traces = hypervolume_plotly(lines).data
    assert [trace.marker.size for trace in traces] == [(0, 7), (0, 7), None]


def test_a_published_setting_that_collapsed_has_no_hypervolume() -> None:
    searched = candidates(to_frame([point(0, 0.0, 0.1, published=True, collapsed=True)]))
    assert _published(searched) == {"super_ft": 0.0}
