"""The report's part on all attacks and data sets beside each other: figures in panels, as papers print them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from study.report.figures.curve import curve_lines, curve_panels_png
from study.report.figures.plane import plane_marks, plane_png
from study.report.figures.reinjection import by_arm, reinjection_png
from study.report.figures.style import as_png
from study.report.html import embedded, escape, slug
from study.results.aftermath import without_other_settings
from study.results.rows import at
from study.spec.combinations import in_words

PLANE, CURVES, REINJECTIONS = "plane", "curves", "reinjections"  # figures are called so
NAMES = (PLANE, CURVES, REINJECTIONS)
NOTES = {
    PLANE: "One mark for each defense (a baseline, or the published setting of a search): the mean over its runs, with "
    "whiskers to the least and the most. Struck through: the model collapsed.",
    CURVES: "Mean over the runs; the band reaches from the least to the most. Of searches: the published setting.",
    REINJECTIONS: "ASR while a repaired model is trained on poisoned data again; grey with dots: the models to read "
    "against.",
}
APART = " Grey and open, or broken: what the study sets apart ({})."

Place = tuple[str, str, str]  # combination, data set, model


def side_by_side(
    table: pd.DataFrame,
    frame: pd.DataFrame,
    curves: pd.DataFrame,
    relapses: pd.DataFrame,
    places: Sequence[Place],
    apart: Sequence[str],
) -> tuple[str, dict[str, bytes]]:
    """HTML of these figures, and the figures for print by name; nothing where there is one attack on one data set.

    Args:
        table: rows of ``settings.aggregate``.
        frame: ledger rows.
        curves: of `record.curves.read_curves`.
        relapses: of `results.aftermath.reinjection_curves`.
        places: of all sections of the report.
        apart: labels that the study sets apart.
    """
    drawn: dict[str, bytes] = {}
    out: list[str] = []
    told = APART.format(", ".join(apart)) if apart else ""

    def add(kind: str, own: str, figure: Figure, title: str) -> None:
        png = as_png(figure)
        drawn[f"{kind}_{slug(own)}" if own else f"{kind}_all"] = png
        out.append(f'{embedded(png, title)}<p class="caption">{escape(NOTES[kind] + told)}</p>')

    for place in places:
        where = _where(place, frame, len(places))
        marks = plane_marks(at(table, place))
        if len(marks) > 1:
            title = f"ASR and clean accuracy{f', {where}' if where else ''}"
            add(PLANE, where, plane_png(title, marks, apart), title)
        here = at(curves, place).groupby("attack", sort=True) if len(curves) else ()
        lines = {str(attack): found for attack, own in here if (found := curve_lines(own))}
        if len(lines) > 1:
            title = where or "all attacks"
            add(CURVES, where, curve_panels_png(title, lines, apart), f"Along the repair, {title}")
    for attack, own in without_other_settings(relapses).groupby("attack", sort=True) if len(relapses) else ():
        panels: dict[str, pd.DataFrame] = {}
        with_curves = [place for place in places if len(at(own, place))]
        for place in with_curves:
            panels |= by_arm(at(own, place), _where(place, frame, len(places)))
        if len(with_curves) > 1:
            title = f"Re-injection: {attack} (report half)"
            # A row for each data set; one row where each has a single panel.
            arms = len(panels) // len(with_curves)
            figure = reinjection_png(title, panels, apart, most=arms if arms > 1 else len(with_curves))
            add(REINJECTIONS, str(attack), figure, title)
    if not out:
        return "", {}
    return "\n".join(['<section id="page-panels"><h2>All attacks beside each other</h2>', *out, "</section>"]), drawn


def _where(place: Place, frame: pd.DataFrame, places: int) -> str:
    """What tells this place from the others, in words; empty where there is one."""
    if places == 1:
        return ""
    combination, dataset, model = place
    known = frame[frame["combination"].eq(combination) & frame["swept"].notna()]["swept"]
    return (in_words(known.iloc[0]) if len(known) else "") or f"{dataset}, {model}"
