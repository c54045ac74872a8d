"""A picture of the front for print: overview and useful corner beside each other, with Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from study.report.figures import label_places
from study.report.figures.front_marks import (
    BETTER,
    OUTCOME_SHAPES,
    Y_LABEL,
    FrontPicture,
    Marks,
    counted,
    label_sides,
)
from study.report.figures.style import (
    FONT,
    SMALL_FONT,
    TEXT_WIDTH,
    canvas,
    for_print,
    legend_columns,
    percent_tick,
)
from study.results.pareto import BOX_ASR


def front_png(picture: FrontPicture) -> Figure:
    """The same scatter for print: overview at the left, useful corner at the right."""
    listed = [m for m in picture.marks if m.listed]
    keys = _key(picture) if picture.crowded else []
    columns = legend_columns([m.name for m in listed] + [str(line.get_label()) for line in keys], TEXT_WIDTH)
    figure = canvas(TEXT_WIDTH, 3.2 + 0.14 * (-(-(len(listed) + len(keys)) // columns)))
    axes = figure.subplots(1, 2)
    for axis, (x, y) in zip(axes, (picture.overview, picture.corner), strict=True):
        for m in picture.marks:
            _draw(axis, m, picture.crowded)
        for index, side in label_sides(picture, (x, y)).items():
            _write_beside(axis, picture.marks[index], side)
        axis.set(xlim=x, ylim=y, xlabel="clean accuracy  (more is better →)")
        axis.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        axis.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    lie = "lies" if picture.outside == 1 else "lie"
    note = f" ({counted(picture.outside)} {lie} further left)" if picture.outside else ""
    axes[0].set(title=f"Overview{note}", ylabel=Y_LABEL)
    (left, right), (bottom, top) = picture.corner
    points = (place for m in picture.marks for place in zip(m.x, m.y, strict=True))
    if not any(left <= x <= right and bottom <= y <= top for x, y in points):
        middle = {"transform": axes[1].transAxes, "ha": "center", "color": "#505050", "fontsize": FONT}
        axes[1].text(0.5, 0.5, "no setting is in this corner", **middle)
    axes[1].set_title(f"Useful corner: ASR up to {BOX_ASR:.0%}")
    for axis in axes:
        for_print(axis)
    figure.suptitle(f"{picture.title}        {BETTER}", fontsize=FONT + 1, fontweight="bold")
    drawn = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    handles = [drawn[m.name] for m in listed] + keys
    look = {"fontsize": SMALL_FONT, "frameon": False, "columnspacing": 1.2, "handletextpad": 0.5, "labelspacing": 0.3}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **look)
    return figure


def _draw(axis: Axes, m: Marks, crowded: bool) -> None:
    shape = m.shape[1]
    edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}
    if m.kind == "trials":
        axis.plot(m.x, m.y, shape, color=m.colour, alpha=0.4, markersize=2.8, label=m.name, markeredgewidth=0)
    elif m.kind in OUTCOME_SHAPES:
        width = 0.4 if m.kind == "abstained" else 1.1
        axis.plot(m.x, m.y, color=m.colour, label=m.name, **_outcome_look(shape), markeredgewidth=width)
    elif m.kind == "front_search":
        look: dict[str, Any] = {"linestyle": "dashed", "drawstyle": "steps-pre"}
        look |= {"linewidth": 0.5, "alpha": 0.35} if crowded else {"linewidth": 0.8, "alpha": 0.8}
        axis.plot(m.x, m.y, color=m.colour, label=m.name, **look)
    elif m.kind == "front_behind":
        look = {"markersize": 4, "markerfacecolor": "white", "markeredgewidth": 0.9, "zorder": 4}
        axis.plot(m.x, m.y, shape, color=m.colour, label=m.name, **look)
    elif m.kind == "front":
        xerr, yerr = ([[w[i] for w in m.half_widths] for i in pair] for pair in ((0, 1), (2, 3)))
        axis.errorbar(m.x, m.y, yerr=yerr, xerr=xerr, fmt="none", ecolor=m.colour, elinewidth=0.5, alpha=0.4, zorder=3)
        look = {"linewidth": 1.0 if crowded else 1.4, "drawstyle": "steps-pre", "markersize": 4.2, "zorder": 4}
        axis.plot(m.x, m.y, marker=shape, color=m.colour, label=m.name, **look)
    else:
        size = 9 if m.kind == "published" else 5
        axis.plot(m.x, m.y, shape, color=m.colour, markersize=size, label=m.name, zorder=5, linestyle="none", **edge)


def _write_beside(axis: Axes, m: Marks, sides: Sequence[str]) -> None:
    for x, y, side in zip(m.x, m.y, sides, strict=True):
        across, up = label_places.SIDES[side]
        axis.annotate(
            m.label,
            (x, y),
            xytext=(across * (2.5 if up else 4), up * (2.5 if across else 3.5)),
            textcoords="offset points",
            horizontalalignment=("right", "center", "left")[across + 1],
            verticalalignment=("top", "center", "bottom")[up + 1],
            fontsize=SMALL_FONT - 0.5,
            color="#222222",
            annotation_clip=True,
            zorder=6,
        )


def _outcome_look(shape: str) -> dict[str, Any]:
    return {"marker": shape, "markersize": 5.5 if shape.startswith("$") else 4.5, "linestyle": "none"}


def _key(picture: FrontPicture) -> list[Line2D]:
    """What the kinds of marks mean, in grey, for a legend that names each search only once."""
    grey, kinds = "#555555", {m.kind for m in picture.marks}
    looks: dict[str, tuple[str, dict[str, Any]]] = {
        "front": ("front (report half)", {"linewidth": 1.0, "marker": "o", "markersize": 4.2}),
        "front_search": ("front as the search saw it", {"linestyle": "dashed", "linewidth": 0.6}),
        "front_behind": (
            "chosen, but beaten on the report half",
            {"marker": "o", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"},
        ),
        "trials": ("other setting", {"marker": "o", "alpha": 0.4, "markersize": 2.8, "linestyle": "none"}),
        "published": (
            "published setting",
            {"marker": "*", "markersize": 8, "markeredgecolor": "black", "linestyle": "none"},
        ),
        **{kind: (kind, _outcome_look(shape)) for kind, (_, shape) in OUTCOME_SHAPES.items()},
    }
    return [Line2D([], [], color=grey, label=label, **look) for kind, (label, look) in looks.items() if kind in kinds]
