"""Figure: how much each parameter of a search mattered."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from plotly.subplots import make_subplots

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    COLUMN_WIDTH,
    FONT,
    PLOTLY_LAYOUT,
    SMALL_FONT,
    TEXT_WIDTH,
    canvas,
    fit,
    for_print,
    percent_tick,
)
from study.results.importance import TARGETS, TRUSTED_TRIALS, Importance

PANELS = 3  # side by side
TARGET_COLOURS = {"asr": "#D55E00", "clean_accuracy": "#0072B2", "front": "#009E73"}


def importance_plotly(found: Mapping[str, Importance]) -> go.Figure:
    """Bars of importance, one panel per defense; only for those where it could be computed."""
    panels = {defense: one for defense, one in found.items() if one.shares}
    wide = min(PANELS, len(panels))
    figure = _grid(panels, wide)
    labelled: set[str] = set()
    for index, one in enumerate(panels.values()):
        names = _by_importance(one)
        for target, label in TARGETS.items():
            if target in one.shares:
                x = [one.shares[target].get(name, 0.0) for name in names]
                style = {
                    "marker": {"color": TARGET_COLOURS[target]},
                    "orientation": "h",
                    "hovertemplate": "%{y}: %{x:.0%}",
                }
                legend = {"name": label, "legendgroup": target, "showlegend": target not in labelled}
                labelled.add(target)
                if target in one.intervals:
                    less, more = _whiskers(one, target, names)
                    style["error_x"] = {"type": "data", "arrayminus": less, "array": more, "thickness": 1, "width": 2}
                figure.add_bar(x=x, y=names, **style, **legend, row=index // wide + 1, col=index % wide + 1)
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    figure.update_xaxes(title_text="share of importance", row=-(-len(panels) // wide))
    figure.update_yaxes(autorange="reversed", automargin=True)
    margin = {"l": 110, "r": 10, "t": 40, "b": 55}
    figure.update_layout(**PLOTLY_LAYOUT, height=_height(panels, wide), margin=margin, barmode="group")
    names = [str(trace.name) for trace in figure.data if trace.showlegend]
    fit(figure, {"height": _height(panels, 1), "margin.t": 30, **_one_below_the_other(panels)}, names=names)
    return figure


def _grid(panels: Mapping[str, Importance], wide: int) -> go.Figure:
    """Empty panels, ``wide`` of them side by side, each as high as its row needs."""
    high = -(-len(panels) // wide)
    heights = _row_heights(panels, wide)
    return make_subplots(
        rows=high,
        cols=wide,
        subplot_titles=[html.escape(_panel_title(defense, one)) for defense, one in panels.items()],
        horizontal_spacing=0.12,
        vertical_spacing=min(0.9 / high, 80 / (62 * sum(heights))) if high > 1 else 0.0,
        row_heights=heights,
    )


def _height(panels: Mapping[str, Importance], wide: int) -> int:
    heights = _row_heights(panels, wide)
    return 108 + 62 * sum(heights) + 80 * (len(heights) - 1)


def _one_below_the_other(panels: Mapping[str, Importance]) -> dict[str, Any]:
    """Changes that put all panels into one column."""
    layout = _grid(panels, 1).layout
    changes: dict[str, Any] = {}
    for index in range(len(panels)):
        number = str(index + 1) if index else ""
        for axis in (f"xaxis{number}", f"yaxis{number}"):
            changes[f"{axis}.domain"] = list(layout[axis].domain)
        changes[f"xaxis{number}.title.text"] = "share of importance" if index == len(panels) - 1 else ""
        changes |= {f"annotations[{index}].{side}": layout.annotations[index][side] for side in ("x", "y")}
        changes[f"annotations[{index}].font.size"] = 12
    return changes


def importance_png(title: str, found: Mapping[str, Importance]) -> Figure:
    """The same bars for print."""
    panels = {defense: one for defense, one in found.items() if one.shares}
    wide = min(PANELS, len(panels))
    heights = _row_heights(panels, wide)
    width = COLUMN_WIDTH if wide == 1 else TEXT_WIDTH
    figure = canvas(width, 0.75 + 0.34 * sum(heights) + 0.4 * len(heights))
    grid = figure.subplots(len(heights), wide, squeeze=False, height_ratios=heights).ravel()
    for axis in grid[len(panels) :]:
        axis.remove()
    for axis, (defense, one) in zip(grid, panels.items(), strict=False):
        names = _by_importance(one)
        for offset, (target, label) in enumerate(TARGETS.items()):
            if target in one.shares:
                places = [row + 0.27 * (offset - 1) for row in range(len(names))]
                widths = [one.shares[target].get(name, 0.0) for name in names]
                axis.barh(places, widths, height=0.25, color=TARGET_COLOURS[target], label=label)
                if target in one.intervals:
                    sides = _whiskers(one, target, names)
                    axis.errorbar(widths, places, xerr=sides, fmt="none", ecolor="black", elinewidth=0.5, capsize=1)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set(xlim=(0, 1), xlabel="share of importance")
        axis.set_title(_panel_title(defense, one).replace(" (", "\n(", 1))  # two lines: a panel is narrow
        axis.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        for_print(axis)
        axis.grid(visible=False, axis="y")
    handles = {}
    for axis in figure.axes:
        handles.update(dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=SMALL_FONT, frameon=False
    )
    figure.suptitle(title, fontsize=FONT + (1 if wide > 1 else 0), fontweight="bold")
    return figure


def _whiskers(one: Importance, target: str, names: list[str]) -> tuple[list[float], list[float]]:
    """From each bar down and up to the ends of its interval; none where a bar lies outside of it."""
    shares, ends = one.shares[target], one.intervals[target]
    reach = [(shares.get(name, 0.0), *ends.get(name, (shares.get(name, 0.0),) * 2)) for name in names]
    return [max(0.0, share - low) for share, low, _ in reach], [max(0.0, high - share) for share, _, high in reach]


def _row_heights(panels: Mapping[str, Importance], wide: int) -> list[int]:
    """Bars of the tallest panel in each row of ``wide`` panels."""
    bars = [len(_by_importance(one)) for one in panels.values()]
    return [max(bars[start : start + wide]) for start in range(0, len(bars), wide)]


def _panel_title(defense: str, one: Importance) -> str:
    return f"{defense} ({one.trials} settings{': a hint only' if one.trials < TRUSTED_TRIALS else ''})"


def _by_importance(one: Importance) -> list[str]:
    names = sorted({name for shares in one.shares.values() for name in shares})
    return sorted(names, key=lambda name: -sum(shares.get(name, 0.0) for shares in one.shares.values()))


@register("importance")
def of_parameters(title: str, tables: AttackTables) -> Drawing | None:
    """Which parameters mattered."""
    found = tables.importances
    if not any(one.shares for one in found.values()):
        return None
    return Drawing(importance_png(f"Importance of parameters: {title}", found), importance_plotly(found))
