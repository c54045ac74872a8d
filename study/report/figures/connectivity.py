"""Figure: ASR and clean accuracy on the straight way from a repaired model back to the backdoored one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.reinjection import model_looks, runs_line
from study.report.figures.style import (
    FONT,
    TEXT_WIDTH,
    canvas,
    for_print,
    legend_below,
    legend_columns,
    panel_grid,
    percent_tick,
)
from study.results.aftermath import connectivity_curves, reading_order, without_other_settings
from study.results.rows import backdoored

RATES = {"asr": "ASR", "clean_accuracy": "clean accuracy"}
PANELS = 2  # side by side: the ways of taking the running statistics, or the rates where there is one way


@register("connectivity")
def way_back(title: str, tables: AttackTables) -> Drawing | None:
    """ASR along the way, and the accuracy, since a point that classifies nothing has no backdoor either."""
    curves = connectivity_curves(backdoored(tables.rows))
    if not len(curves):
        return None
    return Drawing(
        connectivity_png(f"The way back: {title} (report half)", without_other_settings(curves), tables.apart)
    )


def connectivity_png(title: str, curves: pd.DataFrame, apart: Sequence[str] = ()) -> Figure:
    """ASR above clean accuracy, a column for each way of taking the running statistics, for print.

    Args:
        curves: rows of `results.aftermath.connectivity_curves` of one attack.
        apart: labels of defenses that are drawn grey and broken, see ``set_apart`` in a study.
    """
    names = reading_order(sorted(curves["shown_as"].unique()))
    looks = model_looks(names, apart)
    ways = list(dict.fromkeys(curves["statistics"]))
    panels = [(rate, way) for rate in RATES for way in ways]
    columns = legend_columns(names, TEXT_WIDTH)
    figure = canvas(TEXT_WIDTH, 0.6 + 1.6 * len(panels) / PANELS + 0.14 * (-(-len(names) // columns)))
    for index, (axis, (rate, way)) in enumerate(zip(panel_grid(figure, len(panels), PANELS), panels, strict=True)):
        own = curves[curves["statistics"] == way]
        for name in names:
            runs_line(axis, own[own["shown_as"] == name], "share", rate, name, looks[name])
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.03))  # marks at the ends are whole
        if len(ways) > 1 and index < PANELS:
            axis.set_title(f"{way} statistics")
        axis.set_ylabel(RATES[rate] if len(ways) == 1 or way == ways[0] else "")
        axis.set_xlabel("share of the way to the backdoored model" if index + PANELS >= len(panels) else "")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter(FuncFormatter(percent_tick))
        for_print(axis)
    legend_below(figure, names, columns)
    figure.suptitle(title, fontsize=FONT + 1, fontweight="bold")
    return figure
