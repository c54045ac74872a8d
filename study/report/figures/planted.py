"""Figure: what each candidate left of the triggers that a rule of choice planted, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from study.report.figures.style import (
    COLUMN_WIDTH,
    FONT,
    GREY,
    SEARCHED_COLOURS,
    canvas,
    for_print,
    legend_below,
    percent_tick,
)
from study.results.pareto import non_dominated_indices

PLANTED, ACCURACY = "planted_asr", "validation_accuracy"
TRIED, FRONT, CHOSEN = "candidate, on the worst of the copies", "front of the planted triggers", "chosen"


def planted_png(table: Sequence[Mapping[str, Any]], chosen: str | None) -> Figure | None:
    """Planted ASR over validation accuracy on the copies, for print; None where no candidate was tried on copies.

    The whisker of a candidate reaches over its planted ASR on all copies: the mark is the worst of them.

    Args:
        table: of the rule's `Choice`: rows with ``candidate``, ``planted_asr``, ``planted_asr.KIND`` per kind of
            trigger and ``validation_accuracy``, fractions; other rows are left out.
        chosen: label of the candidate that was chosen; None: none was.
    """
    rows = [row for row in table if PLANTED in row]
    if not rows:
        return None
    points = np.array([[row[PLANTED], row[ACCURACY]] for row in rows], dtype=float)
    front = points[non_dominated_indices(points)]
    front = front[np.argsort(front[:, 1])]
    figure = canvas(COLUMN_WIDTH, 3.0)
    axis = figure.subplots()
    for row in rows:
        kinds = [value for key, value in row.items() if key.startswith(f"{PLANTED}.") and key.count(".") == 1]
        axis.plot([row[ACCURACY]] * 2, [min(kinds), max(kinds)], color=GREY, linewidth=0.5, alpha=0.6)
    axis.plot(front[:, 1], front[:, 0], drawstyle="steps-pre", color=SEARCHED_COLOURS[0], linewidth=1.2, label=FRONT)
    axis.plot(points[:, 1], points[:, 0], "o", color=SEARCHED_COLOURS[0], markersize=3.5, alpha=0.7, label=TRIED)
    names = [TRIED, FRONT]
    for row in rows:
        if row["candidate"] == chosen:
            edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}
            axis.plot(row[ACCURACY], row[PLANTED], "*", color=SEARCHED_COLOURS[1], markersize=10, label=CHOSEN, **edge)
            names.append(CHOSEN)
    axis.set(ylim=(-0.03, 1.03), xlabel="validation accuracy on the copies", ylabel="planted ASR")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter(FuncFormatter(percent_tick))
    for_print(axis)
    title = "Planted triggers: no ASR of the real one"
    figure.suptitle(title if chosen is not None else f"{title}; nothing was chosen", fontsize=FONT, fontweight="bold")
    legend_below(figure, names, 1)
    return figure
