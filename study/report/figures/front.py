"""The figure `front`: what each repair costs, one attack at a time."""

from __future__ import annotations

from study.report.figures.front_marks import front_picture
from study.report.figures.front_page import front_plotly
from study.report.figures.front_print import front_png
from study.report.figures.registry import AttackTables, Drawing, register


@register("front")
def front(title: str, tables: AttackTables) -> Drawing | None:
    """What each repair costs: attack success rate against clean accuracy."""
    picture = front_picture(title, tables.settings, tables.members)
    if not picture.marks:
        return None
    lie = "setting lies" if picture.outside == 1 else "settings lie"
    note = f"{picture.outside} {lie} left of the overview: the button Everything shows the whole plane."
    return Drawing(front_png(picture), front_plotly(picture), note=note if picture.outside else "")
