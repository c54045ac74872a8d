"""A picture of the front for the page: interactive, with Plotly."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from study.report.figures.front_marks import BETTER, OUTCOME_SHAPES, Y_LABEL, FrontPicture, Marks, label_sides
from study.report.figures.style import PLOTLY_LAYOUT, faint, fit

X_LABEL = "clean accuracy: clean test images classified right  (more is better →)"


def front_plotly(picture: FrontPicture) -> go.Figure:
    """Interactive scatter: settings on hover, buttons for the overview, the useful corner and the whole plane."""
    figure = go.Figure()
    beside = label_sides(picture, picture.overview)
    for index, m in enumerate(picture.marks):
        style = _plotly_style(m, picture.crowded)
        if index in beside:
            style |= {"mode": "markers+text", "text": m.label, "textposition": beside[index], "textfont": {"size": 11}}
        figure.add_scatter(
            x=m.x,
            y=m.y,
            name=html.escape(m.name),
            hovertext=m.hover,
            hoverinfo="text",
            cliponaxis=m.kind not in ("baseline", "control"),
            showlegend=m.listed,
            legendgroup=m.owner if picture.crowded and m.owner else None,
            **style,
        )
    figure.update_layout(
        **PLOTLY_LAYOUT,
        height=600,
        margin={"l": 70, "r": 10, "t": 70, "b": 60},
        xaxis={"title": {"text": X_LABEL}, "tickformat": ".2~%", "range": picture.overview[0]},
        yaxis={"title": {"text": Y_LABEL}, "tickformat": ".2~%", "range": picture.overview[1]},
    )
    views = {
        "Overview": picture.overview,
        "Useful corner": picture.corner,
        "Everything": ((-0.03, 1.03), (-0.03, 1.03)),
    }
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "showactive": True,
                "pad": {"l": 0, "b": 4},
                "buttons": [
                    {"label": name, "method": "relayout", "args": [{"xaxis.range": list(x), "yaxis.range": list(y)}]}
                    for name, (x, y) in views.items()
                ],
            }
        ]
    )
    better = {"text": f"<b>{BETTER}</b>", "xref": "paper", "yref": "paper", "x": 1, "y": 1.02, "showarrow": False}
    figure.add_annotation(**better, xanchor="right", yanchor="bottom", font={"size": 14, "color": "#222222"})
    narrow = {
        "height": 470,
        "margin.t": 78,
        "xaxis.title.text": "clean accuracy (more is better →)",
        "yaxis.title.text": "ASR (less is better ↓)",
        "yaxis.title.standoff": 4,
        "updatemenus[0].font.size": 11,
        "updatemenus[0].pad.l": -36,  # as far left as the plot's numbers
        "annotations[0].font.size": 12,
        "annotations[0].yshift": 36,  # above the buttons, not beside them
    }
    fit(figure, narrow, names=[m.name for m in picture.marks if m.listed])
    return figure


def _plotly_style(m: Marks, crowded: bool) -> dict[str, Any]:
    marker: dict[str, Any] = {
        "color": m.colour,
        "symbol": m.shape[0],
        "size": 7,
        "line": {"color": "white", "width": 0.5},
    }
    if m.kind == "trials":
        return {"mode": "markers", "marker": marker, "opacity": 0.45}
    if m.kind in OUTCOME_SHAPES:
        return {"mode": "markers", "marker": {**marker, "size": 9, "line": {"color": m.colour, "width": 2}}}
    if m.kind == "front_search":
        return {
            "mode": "lines",
            "line": {"color": m.colour, "width": 1.0 if crowded else 1.3, "dash": "dash", "shape": "vh"},
            "opacity": 0.35 if crowded else 0.8,
        }
    if m.kind == "front_behind":
        line = {"color": m.colour, "width": 2}
        return {"mode": "markers", "marker": {**marker, "size": 10, "color": "white", "line": line}}
    if m.kind == "front":
        bars = {"type": "data", "symmetric": False, "thickness": 0.8, "width": 0, "color": faint(m.colour)}
        line = {"color": m.colour, "width": 2 if crowded else 3, "shape": "vh"}
        return {
            "mode": "lines+markers",
            "line": line,
            "marker": {**marker, "size": 11},
            "error_x": {**bars, "arrayminus": [w[0] for w in m.half_widths], "array": [w[1] for w in m.half_widths]},
            "error_y": {**bars, "arrayminus": [w[2] for w in m.half_widths], "array": [w[3] for w in m.half_widths]},
        }
    size = 20 if m.kind == "published" else 13
    return {"mode": "markers", "marker": {**marker, "size": size, "line": {"color": "black", "width": 1.2}}}
