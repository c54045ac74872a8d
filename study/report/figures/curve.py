"""Figure: ASR and clean accuracy along the repairs, where the study measured them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    FONT,
    SMALL_FONT,
    TEXT_WIDTH,
    canvas,
    for_print,
    legend_columns,
    percent_tick,
    searched_style,
)

RATES = {"asr_report": "ASR", "clean_accuracy_report": "clean accuracy"}
NOTE = (
    "Each line is a repair, from the model as the defense gets it to the model that it hands back; report half, mean "
    "over the runs, the band reaches from the least to the most. Of searched defenses: the published setting. Epochs "
    "are passes over the images that the defense trains on."
)


@dataclass(frozen=True)
class Line:
    """The repair of one setting: means over its runs and their extremes, all of one length.

    Args:
        name: for the legend.
        epochs: passes over the images that the defense trained on.
        rates: of each column of RATES, (mean, least, most) at each of them.
    """

    name: str
    epochs: list[float]
    rates: dict[str, tuple[list[float], list[float], list[float]]]


def curve_lines(curves: pd.DataFrame) -> list[Line]:
    """The lines of one attack: baselines, controls and published settings, by name.

    Points of a model that was not handed back (a teacher) are no part of the repair. Runs that have no point at a step
    where others have one (they ended earlier) do not count there.
    """
    if not len(curves):
        return []
    told = curves[curves["kept"].eq(True) & ((curves["role"] != "search") | curves["published"].eq(True))]
    names = told["defense_label"] + (told["role"] == "control").map({True: " (clean model)", False: ""})
    lines = []
    for name, group in told.groupby(names, sort=True):
        # The last step may lie within a pass.
        at_step = group.groupby("step", sort=True)
        epochs = at_step["passes"].mean().tolist()
        rates = {
            column: (at_step[column].mean().tolist(), at_step[column].min().tolist(), at_step[column].max().tolist())
            for column in RATES
        }
        if len(epochs) > 1:  # a defense that trains nothing has no curve
            lines.append(Line(str(name), epochs, rates))
    return lines


def draw_lines(axis: Axes, lines: list[Line], column: str) -> None:
    """One panel: a rate of all lines over epochs."""
    for number, line in enumerate(lines):
        colour, (_, marker) = searched_style(number)
        mean, least, most = line.rates[column]
        many = len(line.epochs) > 12
        axis.plot(
            line.epochs,
            mean,
            color=colour,
            label=line.name,
            linewidth=1.1,
            marker=None if many else marker,
            markersize=2.5,
            clip_on=False,
        )
        axis.fill_between(line.epochs, least, most, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(0, 1)
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(percent_tick)
    for_print(axis)


def curve_png(title: str, lines: list[Line]) -> Figure:
    """Two panels beside each other, ASR and clean accuracy, with one legend below."""
    columns = legend_columns([line.name for line in lines], TEXT_WIDTH)
    figure = canvas(TEXT_WIDTH, 2.2 + 0.14 * (-(-len(lines) // columns)))
    for axis, (column, words) in zip(figure.subplots(1, 2), RATES.items(), strict=True):
        axis.set(xlabel="epochs of the repair", ylabel=words)
        draw_lines(axis, lines, column)
    figure.suptitle(f"Along the repair: {title} (report half)", fontsize=FONT, fontweight="bold")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    look = {"fontsize": SMALL_FONT, "frameon": False, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **look)
    return figure


@register("curve")
def along_the_repair(title: str, tables: AttackTables) -> Drawing | None:
    """How fast the backdoor goes, and what becomes of the accuracy meanwhile."""
    lines = curve_lines(tables.curves)
    return Drawing(curve_png(title, lines), title="Along the repair", note=NOTE) if lines else None
