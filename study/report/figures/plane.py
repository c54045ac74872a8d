"""Figure: all repairs of a study by ASR and clean accuracy, a panel per attack, as in Figures 7 and 8 of Sha et al.

Unlike the front, which shows every setting of one attack, it has one mark for each defense (a baseline, or the
published setting of a search) and all attacks beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from study.report.figures.style import (
    FONT,
    GREY,
    OTHER_SHAPES,
    TEXT_WIDTH,
    canvas,
    for_print,
    legend_below,
    legend_columns,
    panel_grid,
    percent_tick,
    searched_style,
)
from study.results.aftermath import CLEAN_CONTROL
from study.results.rows import ALL_ATTACKS, with_fixed_settings
from study.results.settings import on_victims

BEFORE = "before repair"
ASR, ACCURACY = "asr_report", "clean_accuracy_report"
PANELS = 5  # side by side: as many attacks as the paper has
MARGIN = 0.03


@dataclass(frozen=True)
class Mark:
    """One defense against one attack: means over its runs, with their extremes.

    Args:
        name: for the legend.
        accuracy, asr: (mean, least, most), fractions.
        collapsed: the model has all but stopped classifying.
    """

    name: str
    accuracy: tuple[float, float, float]
    asr: tuple[float, float, float]
    collapsed: bool = False


def plane_marks(table: pd.DataFrame) -> dict[str, list[Mark]]:
    """The marks of every attack of one data set and model; attacks without a measured repair are left out.

    Args:
        table: rows of ``settings.aggregate``.
    """
    own = table[(table["attack"] != ALL_ATTACKS) & table[ASR].notna() & table[ACCURACY].notna()]
    own = with_fixed_settings(own)
    found: dict[str, list[Mark]] = {}
    for attack, group in own.groupby("attack", sort=True):
        victims = on_victims(group)
        if not len(victims):
            continue
        first = victims.iloc[0]
        accuracy, asr = (float(first[f"{rate}_before_report"]) for rate in ("clean_accuracy", "asr"))
        marks = [Mark(BEFORE, (accuracy,) * 3, (asr,) * 3)]
        for _, one in group.sort_values(["defense_label", "role"]).iterrows():
            if one["defense"] == "none" and one["role"] != "control":
                continue
            name = str(one["defense_label"])
            if one["role"] == "control":
                name = CLEAN_CONTROL if one["defense"] == "none" else f"{name} ({CLEAN_CONTROL})"
            marks.append(Mark(name, _spread(one, ACCURACY), _spread(one, ASR), bool(one["collapsed"])))
        found[str(attack)] = marks
    return found


def _spread(one: pd.Series[Any], rate: str) -> tuple[float, float, float]:
    return float(one[rate]), float(one[f"{rate}_min"]), float(one[f"{rate}_max"])


def plane_png(title: str, panels: dict[str, list[Mark]], apart: Sequence[str] = ()) -> Figure:
    """The figure for print.

    Args:
        panels: of `plane_marks`.
        apart: labels of defenses that are drawn grey and open, see ``set_apart`` in a study.
    """
    names = list(dict.fromkeys(mark.name for marks in panels.values() for mark in marks))
    others = [name for name in names if name in apart or CLEAN_CONTROL in name]
    ours = [name for name in names if name not in others and name != BEFORE]
    names = [BEFORE, *ours, *others]
    columns = legend_columns(names, TEXT_WIDTH)
    wide = min(PANELS, len(panels))
    high = -(-len(panels) // wide)
    figure = canvas(TEXT_WIDTH, 0.5 + max(1.6, 4.6 / wide) * high + 0.14 * (-(-len(names) // columns)))
    for index, (axis, (attack, marks)) in enumerate(
        zip(panel_grid(figure, len(panels), wide), panels.items(), strict=True)
    ):
        for mark in marks:
            if mark.name == BEFORE:
                look = {"color": "black", "marker": "X"}
            elif mark.name in ours:
                colour, (_, shape) = searched_style(ours.index(mark.name))
                look = {"color": colour, "marker": shape}
            else:
                _, shape = OTHER_SHAPES[others.index(mark.name) % len(OTHER_SHAPES)]
                # Where there are more than shapes, the further ones are filled.
                face = "white" if others.index(mark.name) < len(OTHER_SHAPES) else "#BBBBBB"
                look = {"color": GREY, "marker": shape, "markerfacecolor": face}
            _draw(axis, mark, look)
        axis.set_title(attack)
        axis.set_ylim(-MARGIN, 1 + MARGIN)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter(FuncFormatter(percent_tick))
        axis.set_xlabel("clean accuracy" if index + wide >= len(panels) else "")
        axis.set_ylabel("ASR" if index % wide == 0 else "")
        for_print(axis)
    legend_below(figure, names, columns)
    figure.suptitle(f"{title}: report half        ↘  lower right is better", fontsize=FONT, fontweight="bold")
    return figure


def _draw(axis: Axes, mark: Mark, look: dict[str, Any]) -> None:
    """The mean, and whiskers to the least and the most over the runs; struck through where the model collapsed."""
    (x, left, right), (y, low, high) = mark.accuracy, mark.asr
    axis.plot([left, right], [y, y], color=look["color"], linewidth=0.5, alpha=0.6)
    axis.plot([x, x], [low, high], color=look["color"], linewidth=0.5, alpha=0.6)
    axis.plot(x, y, linestyle="none", markersize=4.2, markeredgewidth=0.7, label=mark.name, zorder=3, **look)
    if mark.collapsed:
        axis.plot(x, y, "_", color="black", markersize=8, markeredgewidth=0.8, zorder=4)
