"""Colours, shapes and canvas that all figures share.

Colours are those of Okabe and Ito, then of Paul Tol (readable with colour-blindness).
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SEARCHED_COLOURS = (
    *("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#009E73", "#E69F00"),
    *("#332288", "#882255", "#999933", "#44AA99", "#661100", "#888888"),
)
SEARCHED_SHAPES = (("circle", "o"), ("triangle-up", "^"), ("square", "s"), ("diamond", "D"))  # change with every six
# Of what stands beside the searches, Plotly's name and Matplotlib's.
OTHER_SHAPES = (
    *(("triangle-up", "^"), ("triangle-down", "v"), ("pentagon", "p"), ("hexagon", "h")),
    *(("triangle-left", "<"), ("triangle-right", ">"), ("cross", "P")),
)
Dashes = str | tuple[float, tuple[float, ...]]  # of a line, as Matplotlib takes them
FULL = "-"  # of what a study asks about, and of no line that it sets apart
# Of lines that a study sets apart. None is dotted: so is what was there before.
DASHES: tuple[Dashes, ...] = (
    *("--", "-."),
    *((0, (10, 2)), (0, (5, 1.5, 1, 1.5, 1, 1.5)), (0, (3, 4))),
)
FEW_SEARCHES = 3  # up to so many, the legend has an entry for every kind of mark of every search
GREY = "#777777"
# Plotly's tool bar offers to upload a chart to its maker's server unless told not to.
PLOTLY_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
PLOTLY_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {
        "family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif",
        "size": 13,
        "color": "#222222",
    },
    "hoverlabel": {"align": "left", "bgcolor": "white"},
    "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "itemwidth": 40, "tracegroupgap": 3},
}
NARROW = 820  # pixels: below, a plot of the page takes its narrow layout
# Of figures for print, in inches: the text of a two-column paper, and one of its columns; in points: letters.
TEXT_WIDTH, COLUMN_WIDTH = 7.0, 3.4
FONT, SMALL_FONT = 7.5, 6.5


def canvas(width: float, height: float) -> Figure:
    """A figure of its own canvas, without pyplot: no global state, no display. Inches; printed at its own size."""
    figure = Figure(figsize=(width, height), dpi=300, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def for_print(axis: Axes) -> None:
    """Letters, lines and a faint grid of the size that a paper has room for."""
    axis.tick_params(labelsize=SMALL_FONT, width=0.6, length=2.5, pad=2)
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
        text.set_fontsize(FONT)
    for spine in axis.spines.values():
        spine.set_linewidth(0.6)
    axis.grid(color="#DDDDDD", linewidth=0.5)
    axis.set_axisbelow(True)


def legend_columns(names: Sequence[str], width: float) -> int:
    """Columns that a legend for print may have in ``width`` inches, at SMALL_FONT."""
    widest = 34 + 0.56 * SMALL_FONT * max(map(len, names), default=1)  # points
    return max(1, min(5, len(names), int(72 * width // widest)))


def fit(figure: go.Figure, narrow: Mapping[str, Any], *, names: Sequence[str] = ()) -> None:
    """Give a figure a second layout, for plots narrower than NARROW pixels; the page's script changes between both.

    There the legend goes below the plot, and the script makes the figure as much higher as the legend needs.

    Args:
        narrow: changes of the layout by Plotly's dotted paths, as for ``Plotly.relayout``; ``height`` is that of
            the plot without its legend.
        names: entries of the legend.
    """
    changes = {
        "font.size": 11,
        "margin.l": 48,
        "margin.r": 8,
        "margin.b": 44,
        "legend.orientation": "h",
        "legend.itemwidth": 30,
        "legend.tracegroupgap": 0,
        "legend.maxheight": None,
        "legend.font.size": 10.5,
        "legend.x": 0,
        "legend.xref": "container",
        "legend.y": 0,
        "legend.yref": "container",
        "legend.yanchor": "top",
        **narrow,
    }
    layout = figure.to_plotly_json()["layout"]
    wide = {path: _at(layout, path) for path in changes}
    legend = {"entries": len(names), "widest": max((44 + 5.9 * len(name) for name in names), default=0)}  # pixels
    figure.update_layout(meta={"below": NARROW, "narrow": changes, "wide": wide, **legend})


def _at(layout: Any, path: str) -> Any:
    """The value at a dotted path such as ``annotations[0].font.size``; None, which resets it, where there is none."""
    for key in re.findall(r"[^.\[\]]+", path):
        try:
            layout = layout[int(key)] if isinstance(layout, list | tuple) else layout[key]
        except (KeyError, IndexError):
            return None
    return layout


def searched_style(index: int) -> tuple[str, tuple[str, str]]:
    """Colour and shape (Plotly, Matplotlib) of the search in this place of the alphabet; the pair never repeats."""
    half = len(SEARCHED_COLOURS) // 2
    return SEARCHED_COLOURS[index % len(SEARCHED_COLOURS)], SEARCHED_SHAPES[index // half % len(SEARCHED_SHAPES)]


def apart_look(number: int) -> tuple[Dashes, str]:
    """Dashes and open mark of the line in this place among those that a study sets apart; no two places look alike.

    The first few have no mark.
    """
    again, dash = divmod(number, len(DASHES))
    return DASHES[dash], OTHER_SHAPES[(again - 1) % len(OTHER_SHAPES)][1] if again else ""


def panel_grid(figure: Figure, count: int, wide: int) -> list[Axes]:
    """``count`` axes in rows of ``wide``, all to one scale; places of the last row that stay empty are removed."""
    axes = figure.subplots(-(-count // wide), wide, squeeze=False, sharex=True, sharey=True).ravel()
    for surplus in axes[count:]:
        surplus.remove()
    return list(axes[:count])


def legend_below(figure: Figure, names: Sequence[str], columns: int) -> None:
    """One legend for all panels, at the foot of the figure: each name once, in this order."""
    drawn: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            drawn.setdefault(name, handle)
    look: dict[str, Any] = {"fontsize": SMALL_FONT, "frameon": False, "columnspacing": 1.2, "handletextpad": 0.5}
    shown = [name for name in names if name in drawn]
    figure.legend([drawn[name] for name in shown], shown, loc="outside lower center", ncols=columns, **look)


def percent_tick(value: float, _: object) -> str:
    """A fraction as the percentage that an axis shows."""
    return f"{round(100 * value, 6):g}%"


def faint(colour: str) -> str:
    """The colour at a strength for error bars, as Plotly writes it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.4)"
