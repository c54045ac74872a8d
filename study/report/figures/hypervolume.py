"""Figure: hypervolume of each search over its finished settings."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    COLUMN_WIDTH,
    FEW_SEARCHES,
    FONT,
    PLOTLY_LAYOUT,
    SMALL_FONT,
    canvas,
    fit,
    for_print,
    legend_columns,
    searched_style,
)
from study.results.fronts import on_front
from study.results.pareto import hypervolume


def hypervolume_series(history: pd.DataFrame, published: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lines of hypervolume over finished settings, per defense: report half, search half, published setting alone.

    Args:
        history: rows of ``fronts.hypervolume_over_trials`` of one attack.
        published: defense -> hypervolume of its published setting alone, report half.
    """
    lines: list[dict[str, Any]] = []
    for index, (name, group) in enumerate(history.groupby("defense_label", sort=True)):
        defense = str(name)
        colour, shape = searched_style(index)
        look = {"defense": defense, "colour": colour, "shape": shape}
        x = group["finished"].tolist()
        lines.append(
            {"name": f"{defense}: report half", **look, "style": "solid", "x": x, "y": group["report"].tolist()}
        )
        search = {"name": f"{defense}: search half (optimistic)", "style": "dashed"}
        lines.append({**search, **look, "x": x, "y": group["search"].tolist()})
        if defense in published:
            alone = {"name": f"{defense}: published setting alone", "style": "dotted"}
            lines.append({**alone, **look, "x": [1, max(x[-1], 2)], "y": [published[defense]] * 2})
    return lines


def _is_crowded(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether only the report half of each search can be drawn; its first trial is the published point anyway."""
    return len([line for line in lines if line["style"] == "solid"]) > FEW_SEARCHES


def hypervolume_plotly(lines: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Interactive curve of hypervolume over finished settings."""
    figure = go.Figure()
    dashes = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
    crowded = _is_crowded(lines)
    for line in lines:
        if crowded and line["style"] != "solid":
            continue
        shape = {
            "color": line["colour"],
            "dash": dashes[line["style"]],
            "width": 2.5 if line["style"] == "solid" else 1.5,
        }
        shape["shape"] = "hv"
        # The last step has no length: without a dot, what a search won in its last trial would be a bare upright line.
        ends = {"size": [0] * (len(line["x"]) - 1) + [7], "symbol": line["shape"][0]}
        dotted = line["style"] == "dotted"
        points = {"mode": "lines"} if dotted else {"mode": "lines+markers", "marker": ends}
        hover = "after %{x}: %{y:.4f}"
        figure.add_scatter(
            x=line["x"], y=line["y"], name=html.escape(line["name"]), line=shape, hovertemplate=hover, **points
        )
    figure.update_layout(
        **PLOTLY_LAYOUT,
        height=360,
        margin={"l": 70, "r": 10, "t": 20, "b": 55},
        xaxis={"title": {"text": "finished settings"}, "rangemode": "tozero", "tickformat": "d"},
        yaxis={"title": {"text": "hypervolume (1 = perfect)"}},
    )
    fit(figure, {"height": 330, "margin.t": 10}, names=[str(trace.name) for trace in figure.data])
    return figure


def hypervolume_png(title: str, lines: Sequence[Mapping[str, Any]]) -> Figure:
    """The same curve for print."""
    crowded = _is_crowded(lines)
    drawn = [line for line in lines if line["style"] == "solid" or not crowded]
    # Beside the plot there is no room in a column: the legend goes below, in as many columns as the names allow.
    columns = legend_columns([line["defense" if crowded else "name"] for line in drawn], COLUMN_WIDTH)
    figure = canvas(COLUMN_WIDTH, 2.3 + 0.14 * (-(-len(drawn) // columns)))
    axis = figure.subplots()
    for line in drawn:
        width = 1.3 if line["style"] == "solid" else 0.8
        style = {"color": line["colour"], "linestyle": line["style"], "linewidth": width, "label": line["name"]}
        if crowded:
            style["label"] = line["defense"]
        style |= {} if line["style"] == "dotted" else {"marker": line["shape"][1], "markevery": [-1], "markersize": 3}
        axis.plot(line["x"], line["y"], drawstyle="steps-post", **style)
    axis.set(xlabel="finished settings", ylabel="hypervolume (1 = perfect)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.ticklabel_format(axis="y", useOffset=False)
    for_print(axis)
    figure.suptitle(title + (" (report half)" if crowded else ""), fontsize=FONT, fontweight="bold")
    look = {"fontsize": SMALL_FONT, "frameon": False, "columnspacing": 1.2, "handletextpad": 0.5, "labelspacing": 0.3}
    figure.legend(loc="outside lower center", ncols=columns, **look)
    return figure


@register("hypervolume")
def over_settings(title: str, tables: AttackTables) -> Drawing | None:
    """Whether the searches were long enough."""
    if not len(tables.history):
        return None
    lines = hypervolume_series(tables.history, _published(tables.searched))
    return Drawing(hypervolume_png(f"Hypervolume over settings: {title}", lines), hypervolume_plotly(lines))


def _published(searched: pd.DataFrame) -> dict[str, float]:
    """Defense -> hypervolume of its published settings alone, report half."""
    rows = searched[searched["published"]]
    return {
        str(defense): hypervolume(on_front(group)[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float))
        for defense, group in rows.groupby("defense_label", sort=True)
    }
