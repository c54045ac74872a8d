"""What a picture of the front shows: marks, and the parts of the plane worth looking at; page and print draw them.

Both draw exactly the same marks, so that the PNG in a paper and the page on a screen cannot disagree. Every kind of
mark has a shape of its own. With more than a few searches the legend names each search once and each kind of mark once.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report.figures import label_places
from study.report.figures.style import FEW_SEARCHES, GREY, OTHER_SHAPES, SEARCHED_COLOURS, searched_style
from study.results.in_words import models_of, settings_of
from study.results.pareto import BOX_ASR, BOX_DROP, non_dominated_indices
from study.results.settings import ends_of, on_victims

FEW_BASELINES = 5  # up to so many, a legend is enough; more have their names beside their marks
BASELINE_STYLE = {  # name -> colour, Plotly shape, Matplotlib shape
    "before": ("#000000", "x", "X"),
    "none": ("#000000", "x", "X"),
    "ft": ("#E69F00", "square", "s"),
    "scratch": ("#009E73", "diamond", "D"),
}
# Outcomes of a trial that have a mark of their own; all others are "trials".
OUTCOME_SHAPES = {
    "abstained": ("circle-open", "$\\odot$"),
    "collapsed": ("cross-thin", "+"),
    "diverged": ("x-thin", "x"),
}
_SINGLE = ("trials", *OUTCOME_SHAPES)
SMALL_PANEL = 0.018  # width of a letter of a label, in widths of a panel in print or on a narrow screen
BETTER = "↘  lower right is better"
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
            f"{defense}: {counted(count) if kind == 'trials' else f'{count} {kind}'}",
            kind,
            colour,
            group[outcome == kind],
            shape if kind == "trials" else OUTCOME_SHAPES[kind],
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
        words = [counted(len(group)), *(f"{counts[kind]} {kind}" for kind in OUTCOME_SHAPES if counts[kind])]
        found[at] = dataclasses.replace(found[at], name=f"{defense} ({', '.join(words)})", listed=True)
    return found


def label_sides(picture: FrontPicture, view: tuple[tuple[float, float], tuple[float, float]]) -> dict[int, list[str]]:
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
            ca_low, ca_high = ends_of(record, "clean_accuracy") or (ca, ca)
            asr_low, asr_high = ends_of(record, "asr") or (asr, asr)
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
    for label, metric in (("ASR", "asr"), ("clean accuracy", "clean_accuracy")):
        ends = ends_of(row, metric)
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


def counted(n: int) -> str:
    return "1 setting" if n == 1 else f"{n} settings"
