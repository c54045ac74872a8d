"""Figure: hypervolume of each search over its finished trials."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.report.figures.style import FEW_SEARCHES, PLOTLY_LAYOUT, canvas, searched_style


def hypervolume_series(history: pd.DataFrame, published: Mapping[str, float]) -> list[dict[str, Any]]:
    """Lines of hypervolume over finished trials, per defense: report half, search half, and the published point alone.

    Args:
        history: rows of ``front.hypervolume_over_trials`` of one attack.
        published: defense -> hypervolume of its published point alone, report half.
    """
    lines: list[dict[str, Any]] = []
    for index, (defense, group) in enumerate(history.groupby("defense", sort=True)):
        colour, _ = searched_style(index)
        x = group["finished"].tolist()
        lines.append(
            {
                "name": f"{defense}: report half",
                "colour": colour,
                "style": "solid",
                "x": x,
                "y": group["report"].tolist(),
            }
        )
        name = f"{defense}: search half (optimistic)"
        lines.append({"name": name, "colour": colour, "style": "dashed", "x": x, "y": group["search"].tolist()})
        if defense in published:
            name, y = f"{defense}: published settings alone", [published[str(defense)]] * 2
            lines.append({"name": name, "colour": colour, "style": "dotted", "x": [1, max(x[-1], 2)], "y": y})
    return lines


def _is_crowded(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether only the report half of each search can be drawn; its first trial is the published point anyway."""
    return len([line for line in lines if line["style"] == "solid"]) > FEW_SEARCHES


def hypervolume_plotly(lines: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Interactive curve of hypervolume over finished trials."""
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
        ends = {"mode": "lines+markers", "marker": {"size": [0] * (len(line["x"]) - 1) + [6]}}
        points = {"mode": "lines"} if line["style"] == "dotted" else ends
        hover = "trial %{x}: %{y:.4f}"
        figure.add_scatter(
            x=line["x"], y=line["y"], name=html.escape(line["name"]), line=shape, hovertemplate=hover, **points
        )
    figure.update_layout(
        **PLOTLY_LAYOUT,
        height=360,
        margin={"l": 70, "r": 10, "t": 20, "b": 55},
        xaxis={"title": {"text": "finished trials"}, "rangemode": "tozero", "tickformat": "d"},
        yaxis={"title": {"text": "hypervolume (1 = perfect)"}},
    )
    return figure


def hypervolume_png(title: str, lines: Sequence[Mapping[str, Any]]) -> Figure:
    """The same curve for print."""
    figure = canvas(10.0, 4.6)
    axis = figure.subplots()
    crowded = _is_crowded(lines)
    for line in lines:
        if crowded and line["style"] != "solid":
            continue
        width = 2.2 if line["style"] == "solid" else 1.4
        style = {"color": line["colour"], "linestyle": line["style"], "linewidth": width, "label": line["name"]}
        style |= {} if line["style"] == "dotted" else {"marker": "o", "markevery": [-1], "markersize": 5}
        axis.plot(line["x"], line["y"], drawstyle="steps-post", **style)
    axis.set(xlabel="finished trials", ylabel="hypervolume (1 = perfect)")
    axis.set_title(title, fontsize=12, fontweight="bold")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    return figure
