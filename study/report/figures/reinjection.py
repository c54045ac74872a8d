"""Figure: how the backdoor comes back when a repaired model is trained further on poisoned data."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    DASHES,
    FONT,
    FULL,
    GREY,
    OTHER_SHAPES,
    TEXT_WIDTH,
    Dashes,
    canvas,
    for_print,
    legend_below,
    legend_columns,
    panel_grid,
    percent_tick,
    searched_style,
)
from study.results.aftermath import (
    CLEAN_CONTROL,
    NOT_REPAIRED,
    reading_order,
    reinjection_curves,
    without_other_settings,
)
from study.results.rows import backdoored
from trainables.evaluation.aftermath.settings import FROM_SCRATCH

PANELS = 3  # side by side
EPOCHS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # that the axis names
DOT = "."  # the mark of every point


@dataclass(frozen=True)
class Look:
    """How the line of one model is drawn: its colour, and dashes and mark as Matplotlib takes them.

    Args:
        open: the mark is not filled; so are those of defenses that a study sets apart.
    """

    colour: str
    dashes: Dashes = FULL
    mark: str = DOT
    open: bool = False


# The models to read against are grey, and are told from each other by the line.
LINES = {
    NOT_REPAIRED: Look(GREY),
    FROM_SCRATCH: Look(GREY, DASHES[0]),
    CLEAN_CONTROL: Look(GREY, ":"),
}


@register("reinjection")
def coming_back(title: str, tables: AttackTables) -> Drawing | None:
    """ASR over the epochs of re-injection, a panel per amount of poison and learning rate."""
    curves = reinjection_curves(backdoored(tables.rows))
    if not len(curves):
        return None
    return Drawing(
        reinjection_png(f"Re-injection: {title} (report half)", by_arm(without_other_settings(curves)), tables.apart)
    )


def by_arm(curves: pd.DataFrame, where: str = "") -> dict[str, pd.DataFrame]:
    """The curves of each arm (amount of poison and learning rate), in the study's order.

    Args:
        where: stands before the arm's name.
    """
    before = f"{where}: " if where else ""
    return {f"{before}{arm}, learning rate {lr:g}": own for (arm, lr), own in curves.groupby(["arm", "lr"], sort=False)}


def reinjection_png(
    title: str, panels: Mapping[str, pd.DataFrame], apart: Sequence[str] = (), most: int = PANELS
) -> Figure:
    """ASR over the epochs of re-injection, for print.

    Args:
        panels: rows of `results.aftermath.reinjection_curves` of one attack, by the panel's title.
        apart: labels of defenses that are drawn grey and broken, see ``set_apart`` in a study.
        most: panels side by side.
    """
    names = reading_order(sorted({str(name) for own in panels.values() for name in own["shown_as"].unique()}))
    wide = min(most, len(panels))
    high = -(-len(panels) // wide)
    columns = legend_columns(names, TEXT_WIDTH)
    heads = [_in_lines(head, TEXT_WIDTH / wide) for head in panels]
    more = max(head.count("\n") for head in heads)
    figure = canvas(TEXT_WIDTH, 0.6 + (1.75 + 0.14 * more) * high + 0.14 * (-(-len(names) // columns)))
    looks = model_looks(names, apart)
    longest = max(float(own["epoch"].max()) for own in panels.values())
    for index, (axis, head, own) in enumerate(
        zip(panel_grid(figure, len(panels), wide), heads, panels.values(), strict=True)
    ):
        for name in names:
            runs_line(axis, own[own["shown_as"] == name], "epoch", "asr", name, looks[name])
        axis.set_title(head)
        axis.set(ylim=(-0.03, 1.03))
        axis.set_ylabel("ASR" if index % wide == 0 else "")
        # The curve may be over within an epoch, and fifty follow: as wide as the rest, up to 1.
        axis.set_xscale("symlog", linthresh=1.0, linscale=1.0)
        axis.set_xlim(0, max(1.0, longest))
        axis.xaxis.set_major_locator(FixedLocator(EPOCHS))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axis.set_xlabel("epoch of re-injection" if index + wide >= len(panels) else "")
        for_print(axis)
    legend_below(figure, names, columns)
    figure.suptitle(title, fontsize=FONT + 1, fontweight="bold")
    return figure


def _in_lines(head: str, width: float) -> str:
    """A panel's title in as many lines as ``width`` inches ask for, the first one up to its colon."""
    fits = int(72 * width / (0.6 * FONT))  # letters
    if len(head) <= fits:
        return head
    where, colon, arm = head.rpartition(": ")
    parts = [where + colon.strip(), arm] if colon else [arm]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, fits))


def model_looks(names: Sequence[str], apart: Sequence[str] = ()) -> dict[str, Look]:
    """The look of each model's line, no two alike: grey are those to read against and what the study sets apart.

    Args:
        names: of the models, as `results.aftermath.shown_as` has them.
        apart: labels of defenses that the study sets apart; they have open marks. So have repaired clean models.
    """
    repairs = [name for name in names if name not in LINES]
    grey = [name for name in repairs if name.partition(",")[0] in (*apart, CLEAN_CONTROL)]
    coloured = [name for name in repairs if name not in grey]
    looks = {name: Look(searched_style(number)[0]) for number, name in enumerate(coloured)}
    for number, name in enumerate(grey):
        # Other dashes than those of the models to read against; the shape of the mark is of another cycle's length.
        dashes = DASHES[1:][number % (len(DASHES) - 1)]
        looks[name] = Look(GREY, dashes, OTHER_SHAPES[number % len(OTHER_SHAPES)][1], open=True)
    return looks | LINES


def runs_line(axis: Axes, own: pd.DataFrame, x: str, y: str, name: str, look: Look) -> None:
    """Mean over the runs of a model, and from the least to the largest of them."""
    steps = own.groupby(x, sort=True)[y].agg(["mean", "min", "max", "count"])
    if not len(steps):
        return
    drawn: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "linewidth": 1.2}
    drawn |= {"marker": look.mark, "markersize": 3}
    if look.open:
        drawn |= {"linewidth": 0.9, "markerfacecolor": "white", "markeredgewidth": 0.7}
    axis.plot(steps.index, steps["mean"], label=name, **drawn)
    if int(steps["count"].max()) > 1:
        axis.fill_between(steps.index, steps["min"], steps["max"], color=look.colour, alpha=0.15, linewidth=0)
