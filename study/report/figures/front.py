"""Pictures of a study, each from one set of marks: interactive with Plotly for report.html, PNG with Matplotlib.

Both draw exactly the same marks, so that the PNG in a paper and the page on a screen cannot disagree. Colours are
those of Okabe and Ito, then of Paul Tol (readable with colour-blindness); every kind of mark also has a shape of its
own. With more than a few searches the legend names each search once and each kind of mark once.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from study.record.words import interval, percent
from study.report.figures import label_places
from study.report.figures.registry import AttackTables, Drawing, register
from study.report.figures.style import (
    FEW_SEARCHES,
    FONT,
    GREY,
    OTHER_SHAPES,
    PLOTLY_LAYOUT,
    SEARCHED_COLOURS,
    SMALL_FONT,
    TEXT_WIDTH,
    canvas,
    faint,
    fit,
    for_print,
    legend_columns,
    percent_tick,
    searched_style,
)
from study.results.in_words import models_of, settings_of
from study.results.pareto import BOX_ASR, BOX_DROP, non_dominated_indices
from study.results.settings import on_victims

FEW_BASELINES = 5  # up to so many, a legend is enough; more have their names beside their marks
BASELINE_STYLE = {  # name -> colour, Plotly shape, Matplotlib shape
    "before": ("#000000", "x", "X"),
    "none": ("#000000", "x", "X"),
    "ft": ("#E69F00", "square", "s"),
    "scratch": ("#009E73", "diamond", "D"),
}
# Outcomes of a trial that have a mark of their own; all others are "trials".
_OUTCOME_SHAPES = {
    "abstained": ("circle-open", "$\\odot$"),
    "collapsed": ("cross-thin", "+"),
    "diverged": ("x-thin", "x"),
}
_SINGLE = ("trials", *_OUTCOME_SHAPES)
SMALL_PANEL = 0.018  # width of a letter of a label, in widths of a panel in print or on a narrow screen
BETTER = "↘  lower right is better"
X_LABEL = "clean accuracy: clean test images classified right  (more is better →)"
Y_LABEL = "attack success rate (ASR)  (less is better ↓)"


@dataclass(frozen=True)
class Marks:
    """Points drawn alike: coordinates are fractions (x clean accuracy, y ASR), ``hover`` is one HTML text per point."""

    name: str
    kind: (
        str  # trials, abstained, collapsed, diverged, front, front_behind, front_search, published, baseline or control
    )
    colour: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    hover: tuple[str, ...] = ()
    shape: tuple[str, str] = ("circle", "o")
    half_widths: tuple[tuple[float, float, float, float], ...] = ()  # 95 % interval: x down, x up, y down, y up
    owner: str = ""  # the searched defense; empty for baselines
    label: str = ""  # written beside each point
    listed: bool = True  # in the legend


@dataclass(frozen=True)
class FrontPicture:
    """All marks of one attack, and the two parts of the plane worth looking at ((x0, x1), (y0, y1), fractions)."""

    title: str
    marks: list[Marks]
    overview: tuple[tuple[float, float], tuple[float, float]]
    corner: tuple[tuple[float, float], tuple[float, float]]
    outside: int = field(default=0)  # settings left of the overview

    @property
    def crowded(self) -> bool:
        """Whether there are too many searches for a legend that names all of their marks."""
        return len({m.owner for m in self.marks if m.owner}) > FEW_SEARCHES


def front_picture(title: str, settings: pd.DataFrame, front: pd.DataFrame) -> FrontPicture:
    """Marks of one attack.

    Args:
        settings: rows of ``settings.aggregate`` of this attack, searched ones and baselines.
        front: rows of ``fronts.fronts`` of this attack.
    """
    measured = settings.dropna(subset=["asr_report", "clean_accuracy_report"])
    # What was dropped in a race has a result on some cells alone, which may be the easier ones.
    searched = measured[(measured["role"] == "search") & ~measured["dropped"]]
    marks: list[Marks] = []
    crowded = searched["defense_label"].nunique() > FEW_SEARCHES
    for index, (defense, group) in enumerate(searched.groupby("defense_label", sort=True)):
        marks += _searched(str(defense), index, group, front[front["defense_label"] == defense], crowded)
    baselines = measured[measured["role"] == "baseline"]
    victims = on_victims(measured)
    if not (baselines["defense"] == "none").any() and len(victims):
        marks.append(_before(victims.iloc[0]))
    others = itertools.cycle(OTHER_SHAPES)
    # Beside searches, baselines are grey: colours are the searches'.
    colours = itertools.cycle((GREY,) if len(searched) else SEARCHED_COLOURS)
    many = baselines["defense_label"].nunique() > FEW_BASELINES
    for defense, group in baselines.groupby("defense_label", sort=True):
        colour, *shape = BASELINE_STYLE.get(str(defense)) or (next(colours), *next(others))
        remarks = ["no repair" if defense == "none" else "baseline"]
        remarks += [status for status in ("abstained", "diverged") if (group["status"] == status).all()]
        remarks += ["collapsed"] if group["collapsed"].all() else []
        name = f"{defense!s} ({', '.join(remarks)})"
        one = _marks(name, "baseline", colour, group, (shape[0], shape[1]))
        marks.append(dataclasses.replace(one, label=str(defense) if many else ""))
    for defense, group in measured[measured["role"] == "control"].groupby("defense_label", sort=True):
        marks.append(_marks(f"{defense!s} (clean control)", "control", GREY, group, next(others)))
    overview = _overview(marks)
    outside = sum(x < overview[0][0] for m in marks if m.kind in _SINGLE for x in m.x)
    return FrontPicture(title, marks, overview, _corner(marks, settings), outside)


def _searched(defense: str, index: int, group: pd.DataFrame, front: pd.DataFrame, crowded: bool) -> list[Marks]:
    """Marks of one search: every measured setting once by its outcome, then the front and the published point."""
    colour, shape = searched_style(index)
    outcome = group["status"].where(group["status"].isin(["diverged", "abstained"]), "trials")
    outcome = outcome.mask(group["collapsed"] & (outcome != "diverged"), "collapsed")
    counts = {kind: int((outcome == kind).sum()) for kind in _SINGLE}
    found = [
        _marks(
            f"{defense}: {_count(count) if kind == 'trials' else f'{count} {kind}'}",
            kind,
            colour,
            group[outcome == kind],
            shape if kind == "trials" else _OUTCOME_SHAPES[kind],
        )
        for kind, count in counts.items()
        if count
    ]
    members = group.set_index("trial").loc[front["trial"]].reset_index()
    if len(members):
        # Chosen on the search half, some members turn out beaten by others on the report half: they are shown, and
        # the line joins the rest, so that the area behind it is the report-half hypervolume.
        kept = non_dominated_indices(members[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float))
        behind = members.drop(index=members.index[kept])
        found.append(_marks(f"{defense}: front as the search saw it", "front_search", colour, members, half="search"))
        if len(behind):
            found.append(
                _marks(f"{defense}: chosen, but beaten on the report half", "front_behind", colour, behind, shape)
            )
        found.append(_marks(f"{defense}: front (report half)", "front", colour, members.iloc[kept], shape))
    if group["published"].any():
        published = group[group["published"]]
        found.append(_marks(f"{defense}: published setting", "published", colour, published, ("star", "*")))
    found = [dataclasses.replace(m, owner=defense, listed=not crowded) for m in found]
    if crowded:  # one entry, which tells all counts
        at = next((i for i, m in enumerate(found) if m.kind == "front"), 0)
        words = [_count(len(group)), *(f"{counts[kind]} {kind}" for kind in _OUTCOME_SHAPES if counts[kind])]
        found[at] = dataclasses.replace(found[at], name=f"{defense} ({', '.join(words)})", listed=True)
    return found


def front_plotly(picture: FrontPicture) -> go.Figure:
    """Interactive scatter: settings on hover, buttons for the overview, the useful corner and the whole plane."""
    figure = go.Figure()
    beside = _label_sides(picture, picture.overview)
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
        for index, side in _label_sides(picture, (x, y)).items():
            _write_beside(axis, picture.marks[index], side)
        axis.set(xlim=x, ylim=y, xlabel="clean accuracy  (more is better →)")
        axis.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        axis.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    lie = "lies" if picture.outside == 1 else "lie"
    note = f" ({_count(picture.outside)} {lie} further left)" if picture.outside else ""
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


def _marks(
    name: str,
    kind: str,
    colour: str,
    rows: pd.DataFrame,
    shape: tuple[str, str] = ("circle", "o"),
    half: str = "report",
) -> Marks:
    x = tuple(rows[f"clean_accuracy_{half}"].astype(float))
    y = tuple(rows[f"asr_{half}"].astype(float))
    records = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    widths: list[tuple[float, float, float, float]] = []
    if kind == "front":
        for record in records:
            ca, asr = record["clean_accuracy_report"], record["asr_report"]
            ca_low, ca_high = interval(ca, record["n_clean_report"]) or (ca, ca)
            asr_low, asr_high = interval(asr, record["n_triggered_report"]) or (asr, asr)
            ends = (ca - ca_low, ca_high - ca, asr - asr_low, asr_high - asr)
            widths.append((max(ends[0], 0.0), max(ends[1], 0.0), max(ends[2], 0.0), max(ends[3], 0.0)))
    return Marks(name, kind, colour, x, y, tuple(_hover(r) for r in records), shape, tuple(widths))


def _before(one: pd.Series[Any]) -> Marks:
    """The victims as they were, where no baseline ``none`` was run."""
    x, y = float(one["clean_accuracy_before_report"]), float(one["asr_before_report"])
    hover = f"<b>before repair</b><br>ASR {percent(y)}<br>clean accuracy {percent(x)}"
    colour, *shape = BASELINE_STYLE["before"]
    return Marks("before repair", "baseline", colour, (x,), (y,), (hover,), (shape[0], shape[1]))


def _hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{html.escape(str(row['trial']))}</b>",
        f"{html.escape(str(row['defense_label']))}, status {row['status']}",
    ]
    if row["published"]:
        lines[-1] += ", published setting"
    for label, metric, count in (
        ("ASR", "asr", "n_triggered_report"),
        ("clean accuracy", "clean_accuracy", "n_clean_report"),
    ):
        ends = interval(row[f"{metric}_report"], row[count])
        between = f" [{percent(ends[0])} – {percent(ends[1])}]" if ends else ""
        lines.append(
            f"{label} {percent(row[f'{metric}_report'])}{between}; search half {percent(row[f'{metric}_search'])}"
        )
    lines.append(f"robust accuracy {percent(row['robust_accuracy_report'])}")
    for name, value in settings_of(row).items():
        lines.append(f"{html.escape(name)} = {html.escape(f'{value:.4g}' if isinstance(value, float) else str(value))}")
    if not pd.isna(row["epochs_alone"]):
        lines.append(f"cost {row['epochs_alone']:.2f} E")
    if not pd.isna(row["wall_seconds"]):
        lines[-1] += f", {row['wall_seconds']:.1f} s"
    if row["cells"] > 1:
        low, high = row["asr_report_min"], row["asr_report_max"]
        lines.append(f"mean of {row['cells']} runs; ASR {percent(low)} to {percent(high)}")
    if words := models_of(row):
        lines.append(f"on {words}")
    return "<br>".join(lines)


def _plotly_style(m: Marks, crowded: bool) -> dict[str, Any]:
    marker: dict[str, Any] = {
        "color": m.colour,
        "symbol": m.shape[0],
        "size": 7,
        "line": {"color": "white", "width": 0.5},
    }
    if m.kind == "trials":
        return {"mode": "markers", "marker": marker, "opacity": 0.45}
    if m.kind in _OUTCOME_SHAPES:
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


def _draw(axis: Axes, m: Marks, crowded: bool) -> None:
    shape = m.shape[1]
    edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6}
    if m.kind == "trials":
        axis.plot(m.x, m.y, shape, color=m.colour, alpha=0.4, markersize=2.8, label=m.name, markeredgewidth=0)
    elif m.kind in _OUTCOME_SHAPES:
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


def _label_sides(picture: FrontPicture, view: tuple[tuple[float, float], tuple[float, float]]) -> dict[int, list[str]]:
    """For each of the picture's marks that has a label: the side of each of its points where the label stands."""
    (left, right), (bottom, top) = view

    def placed(m: Marks) -> list[tuple[float, float]]:
        return [((x - left) / (right - left), (y - bottom) / (top - bottom)) for x, y in zip(m.x, m.y, strict=True)]

    labelled = [(index, place) for index, m in enumerate(picture.marks) if m.label for place in placed(m)]
    everything = [place for m in picture.marks for place in placed(m)]
    names = [picture.marks[index].label for index, _ in labelled]
    found: dict[int, list[str]] = {}
    for (index, _), side in zip(
        labelled, label_places.sides([p for _, p in labelled], names, everything, SMALL_PANEL), strict=True
    ):
        found.setdefault(index, []).append(side)
    return found


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
        **{kind: (kind, _outcome_look(shape)) for kind, (_, shape) in _OUTCOME_SHAPES.items()},
    }
    return [Line2D([], [], color=grey, label=label, **look) for kind, (label, look) in looks.items() if kind in kinds]


def _overview(marks: Sequence[Marks]) -> tuple[tuple[float, float], tuple[float, float]]:
    """All fronts, published points and baselines and nine tenths of the trials, at ASR 0 to 1.

    Without this rule a few ruined models would press everything that matters into the last millimetre.
    """
    shown = [x for m in marks if m.kind not in _SINGLE and m.kind != "front_search" for x in m.x]
    trials = sorted(x for m in marks if m.kind == "trials" for x in m.x)
    if not shown and not trials:
        return (-0.03, 1.03), (-0.03, 1.03)
    low = min(shown + trials[len(trials) // 10 :][:1])
    high = max(shown + trials)
    pad = 0.06 * max(high - low, 0.02)
    return (low - pad, high + pad), (-0.03, 1.03)


def _corner(marks: Sequence[Marks], settings: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]]:
    """The box of the second hypervolume, cut at the left to what lies in it: little ASR, little accuracy lost."""
    before = settings["clean_accuracy_before_report"].mean()
    before = 1.0 if pd.isna(before) else float(before)
    inside = [x for m in marks for x, y in zip(m.x, m.y, strict=True) if y <= BOX_ASR and x >= before - BOX_DROP]
    low, high = min([*inside, before - 0.02]), max([*inside, before])
    pad = 0.08 * (high - low)
    return (low - pad, high + pad), (-0.03 * BOX_ASR, 1.03 * BOX_ASR)


def _count(n: int) -> str:
    return "1 setting" if n == 1 else f"{n} settings"


@register("front")
def front(title: str, tables: AttackTables) -> Drawing | None:
    """What each repair costs: attack success rate against clean accuracy."""
    picture = front_picture(title, tables.settings, tables.members)
    if not picture.marks:
        return None
    lie = "setting, ruined or diverged, lies" if picture.outside == 1 else "settings, ruined or diverged, lie"
    note = f"{picture.outside} {lie} left of the overview: the button Everything shows the whole plane."
    return Drawing(front_png(picture), front_plotly(picture), note=note if picture.outside else "")
