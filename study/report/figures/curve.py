"""Figures of ASR and clean accuracy along the repairs: of one attack, and of all as in Figure 14 of Sha et al."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    FONT,
    GREY,
    TEXT_WIDTH,
    apart_look,
    canvas,
    for_print,
    legend_below,
    legend_columns,
    percent_tick,
    searched_style,
)
from study.results.aftermath import CLEAN_CONTROL
from study.results.rows import with_fixed_settings

RATES = {"asr_report": "ASR", "clean_accuracy_report": "clean accuracy"}
CLEAN_MODEL = f" ({CLEAN_CONTROL})"
MANY_POINTS = 12  # more have no marks, but those of lines that nothing else tells apart
FEW_MARKS = 6  # that such a line then has
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
    told = with_fixed_settings(curves[curves["kept"].eq(True)])
    names = told["defense_label"] + (told["role"] == "control").map({True: CLEAN_MODEL, False: ""})
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


def line_looks(names: Sequence[str], apart: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marks of each line; grey and broken are those that the study sets apart, and clean models'."""
    looks: dict[str, dict[str, Any]] = {}
    set_apart = [name for name in names if name in apart or name.endswith(CLEAN_MODEL)]
    for number, name in enumerate(name for name in names if name not in set_apart):
        colour, (_, marker) = searched_style(number)
        looks[name] = {"color": colour, "marker": marker, "linewidth": 1.1}
    for number, name in enumerate(set_apart):
        dashes, mark = apart_look(number)
        looks[name] = {"color": GREY, "linestyle": dashes, "linewidth": 0.9}
        if mark:  # all kinds of dashes are taken: the mark alone tells this line from another
            looks[name] |= {"marker": mark, "markerfacecolor": "white", "markeredgewidth": 0.6}
    return looks


def draw_lines(axis: Axes, lines: Sequence[Line], column: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """One panel: a rate of all lines over epochs."""
    for line in lines:
        mean, least, most = line.rates[column]
        look = dict(looks[line.name])
        if len(line.epochs) > MANY_POINTS and "markerfacecolor" in look:
            look["markevery"] = len(line.epochs) // FEW_MARKS
        elif len(line.epochs) > MANY_POINTS:
            look.pop("marker", None)
        axis.plot(line.epochs, mean, label=line.name, markersize=2.5, clip_on=False, **look)
        axis.fill_between(line.epochs, least, most, color=look["color"], alpha=0.15, linewidth=0)
    axis.set_ylim(0, 1)
    axis.set_xlim(left=0)
    axis.yaxis.set_major_formatter(percent_tick)
    for_print(axis)


def curve_png(title: str, lines: list[Line], apart: Sequence[str] = ()) -> Figure:
    """Two panels beside each other, ASR and clean accuracy, with one legend below."""
    names = [line.name for line in lines]
    columns = legend_columns(names, TEXT_WIDTH)
    figure = canvas(TEXT_WIDTH, 2.2 + 0.14 * (-(-len(lines) // columns)))
    looks = line_looks(names, apart)
    for axis, (column, words) in zip(figure.subplots(1, 2), RATES.items(), strict=True):
        axis.set(xlabel="epochs of the repair", ylabel=words)
        draw_lines(axis, lines, column, looks)
    figure.suptitle(f"Along the repair: {title} (report half)", fontsize=FONT, fontweight="bold")
    legend_below(figure, names, columns)
    return figure


def curve_panels_png(title: str, panels: Mapping[str, Sequence[Line]], apart: Sequence[str] = ()) -> Figure:
    """All attacks of one data set and model: a column for each, ASR above and clean accuracy below.

    Args:
        panels: the lines of each attack, of `curve_lines`.
        apart: labels of defenses that are drawn grey and broken, see ``set_apart`` in a study.
    """
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines))
    looks = line_looks(names, apart)
    columns = legend_columns(names, TEXT_WIDTH)
    figure = canvas(TEXT_WIDTH, 3.2 + 0.14 * (-(-len(names) // columns)))
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
    for place, (attack, lines) in enumerate(panels.items()):
        for axis, (column, words) in zip(axes[:, place], RATES.items(), strict=True):
            draw_lines(axis, lines, column, looks)
            axis.set_ylabel(words if place == 0 else "")
        axes[0][place].set_title(attack)
        axes[1][place].set_xlabel("epochs of the repair")
        for axis in axes[:, place]:
            for_print(axis)
    figure.suptitle(f"Along the repair: {title} (report half)", fontsize=FONT, fontweight="bold")
    legend_below(figure, names, columns)
    return figure


@register("curve")
def along_the_repair(title: str, tables: AttackTables) -> Drawing | None:
    """How fast the backdoor goes, and what becomes of the accuracy meanwhile."""
    lines = curve_lines(tables.curves)
    return Drawing(curve_png(title, lines, tables.apart), title="Along the repair", note=NOTE) if lines else None
