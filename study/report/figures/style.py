"""Colours, shapes and canvas that all figures share.

Colours are those of Okabe and Ito, then of Paul Tol (readable with colour-blindness).
"""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SEARCHED_COLOURS = (
    *("#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#009E73", "#E69F00"),
    *("#332288", "#882255", "#999933", "#44AA99", "#661100", "#888888"),
)
SEARCHED_SHAPES = (("circle", "o"), ("triangle-up", "^"), ("square", "s"), ("diamond", "D"))  # change with every six
FEW_SEARCHES = 3  # up to so many, the legend has an entry for every kind of mark of every search
GREY = "#777777"
# Plotly's tool bar offers to upload a chart to its maker's server unless told not to.
PLOTLY_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
PLOTLY_LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13},
    "hoverlabel": {"align": "left", "bgcolor": "white"},
    "legend": {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top", "itemwidth": 40},
}


def canvas(width: float, height: float) -> Figure:
    """A figure of its own canvas, without pyplot: no global state, no display."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def searched_style(index: int) -> tuple[str, tuple[str, str]]:
    """Colour and shape (Plotly, Matplotlib) of the search in this place of the alphabet; the pair never repeats."""
    half = len(SEARCHED_COLOURS) // 2
    return SEARCHED_COLOURS[index % len(SEARCHED_COLOURS)], SEARCHED_SHAPES[index // half % len(SEARCHED_SHAPES)]


def percent_tick(value: float, _: object) -> str:
    return f"{round(100 * value, 6):g}%"


def faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.4)"
