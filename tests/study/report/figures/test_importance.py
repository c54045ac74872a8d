"""The picture of importance has a panel for each search."""

from __future__ import annotations

from study.record.columns import to_frame
from study.report.figures.importance import importance_plotly, importance_png
from study.results.importance import importance
from study.results.settings import candidates
from tests.study.rows import made_up_study


def test_panels_of_importance_stand_in_rows() -> None:
    frame = to_frame(made_up_study(attacks=("badnets",), defenses=tuple("abcde"), trials=6))
    found = {str(name): importance(one) for name, one in candidates(frame).groupby("defense")}
    panels = [axis for axis in importance_png("x", found).axes if axis.get_title()]
    assert len(panels) == 5
    assert len({round(axis.get_position().y0, 2) for axis in panels}) == 2
    assert len(importance_plotly(found).data) == 15
