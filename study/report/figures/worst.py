"""Figure: of settings that were scored over several attacks, the front by their means beside that of the worst case."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure

from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    COLUMN_WIDTH,
    FONT,
    PLOTLY_LAYOUT,
    SMALL_FONT,
    canvas,
    fit,
    for_print,
    legend_columns,
    percent_tick,
    searched_style,
)
from study.spec.over_attacks import MEAN, WORST_CASE, parse_rule

TITLE = "Does it hold on every attack? The front of the worst case"
NOTE = (
    "One dot is a setting of a front, on the report half. A front by means may rest on a setting that fails on one of "
    "the attacks; in the worst case every rate is that of the attack on which the setting does worst, ASR and clean "
    "accuracy each by itself. The worst of several measured rates is worse than the true worst by luck, the more so "
    "the fewer test images and seeds there are."
)
# Dots alone: chosen on the search half, the settings of a front need be none on the report half, so no line joins them.
MARKS = {str(MEAN): ("circle-open", "none"), str(WORST_CASE): ("circle", "full")}
OTHER = ("diamond-open", "none")  # a rule between the two


@register("worst")
def worst(title: str, tables: AttackTables) -> Drawing | None:
    """Both fronts of every defense."""
    if not len(tables.by_rule):
        return None
    lines = [(str(name), str(rule), group) for (name, rule), group in tables.by_rule.groupby(["defense_label", "rule"])]
    return Drawing(worst_png(lines), worst_plotly(lines), TITLE, NOTE)


def _label(defense: str, rule: str) -> str:
    return f"{defense}: {parse_rule(rule).in_words}"


def _look(lines: list[tuple[str, str, pd.DataFrame]], defense: str, rule: str) -> tuple[str, tuple[str, str]]:
    names = sorted({name for name, _, _ in lines})
    return searched_style(names.index(defense))[0], MARKS.get(rule, OTHER)


def worst_plotly(lines: list[tuple[str, str, pd.DataFrame]]) -> go.Figure:
    """For the page."""
    figure = go.Figure()
    for defense, rule, group in lines:
        colour, (symbol, _) = _look(lines, defense, rule)
        figure.add_scatter(
            x=group["clean_accuracy_report"],
            y=group["asr_report"],
            name=html.escape(_label(defense, rule)),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8},
            customdata=[html.escape(str(trial)) for trial in group["trial"]],
            hovertemplate="%{customdata}<br>ASR %{y:.1%}, clean accuracy %{x:.1%}",
        )
    figure.update_layout(
        **PLOTLY_LAYOUT,
        height=360,
        margin={"l": 70, "r": 10, "t": 20, "b": 55},
        xaxis={"title": {"text": "clean accuracy"}, "tickformat": ".0%"},
        yaxis={"title": {"text": "ASR"}, "tickformat": ".0%"},
    )
    fit(figure, {"height": 330, "margin.t": 10}, names=[str(trace.name) for trace in figure.data])
    return figure


def worst_png(lines: list[tuple[str, str, pd.DataFrame]]) -> Figure:
    """For print."""
    columns = legend_columns([_label(defense, rule) for defense, rule, _ in lines], COLUMN_WIDTH)
    figure = canvas(COLUMN_WIDTH, 2.3 + 0.14 * -(-len(lines) // columns))
    axis = figure.subplots()
    for defense, rule, group in lines:
        colour, (symbol, fill) = _look(lines, defense, rule)
        axis.plot(
            group["clean_accuracy_report"],
            group["asr_report"],
            color=colour,
            linestyle="none",
            marker="D" if symbol.startswith("diamond") else "o",
            fillstyle=fill,
            markersize=3.5,
            label=_label(defense, rule),
        )
    axis.set(xlabel="clean accuracy", ylabel="ASR")
    axis.xaxis.set_major_formatter(percent_tick)
    axis.yaxis.set_major_formatter(percent_tick)
    for_print(axis)
    figure.suptitle("Means and worst case over attacks (report half)", fontsize=FONT, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=columns, fontsize=SMALL_FONT, frameon=False)
    return figure
