"""Figure: ASR and clean accuracy over a swept key, as in Figures 13 and 15 of Sha et al.: two rows, a column per panel.

Unlike the figures of an attack, it draws all combinations of a study at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study.report.figures.style import (
    COLUMN_WIDTH,
    FONT,
    FULL,
    GREY,
    SMALL_FONT,
    TEXT_WIDTH,
    Dashes,
    apart_look,
    canvas,
    for_print,
    percent_tick,
    searched_style,
)
from study.results.rows import ALL_ATTACKS, with_fixed_settings
from study.results.settings import AS_TOLD, on_victims

RATES = {"asr_report": "ASR", "clean_accuracy_report": "clean accuracy"}
BEFORE = "before repair"
MOST_PANELS = 5
LOG_FROM = 20.0  # an axis whose largest value is so many times the smallest is logarithmic
DOTTED: Dashes = (0, (1, 1.5))  # of the models before repair
MARKS = "osD^vPX*ph<>"  # a letter each, of the defenses that a study asks about, in their order
ATTACK, DEFENSE = "attack", "defense"  # heads of the two legends
LEGEND_INK = "#333333"  # of a line whose colour does not matter


@dataclass(frozen=True)
class Series:
    """One line: a defense against an attack over the values of the key.

    Args:
        attack, defense: whose; defense `BEFORE` is the model as it was.
        place: of each point among the values of the axis.
        rates: of each column of RATES, (mean, least, most) over the runs at each point.
    """

    attack: str
    defense: str
    place: list[int]
    rates: dict[str, tuple[list[float], list[float], list[float]]]

    @property
    def name(self) -> str:
        """Whose line it is, in words."""
        return f"{self.attack}, {self.defense}"


@dataclass(frozen=True)
class Look:
    """How the lines of one defense are drawn; their colour is the attack's.

    Args:
        dashes, mark: as Matplotlib takes them; no mark where empty.
        thin: the study sets the defense apart.
    """

    dashes: Dashes
    mark: str
    thin: bool = False


@dataclass(frozen=True)
class Panels:
    """One figure: the axis, and a column of two panels for each value of a second key.

    Args:
        key, values: the axis.
        columns: title of each column and its lines.
        where: the values of all other keys, in words; empty where there are none.
        order: labels of defenses, as the study lists them.
        apart: labels of defenses that are drawn thin and broken; without any, all but the first.
    """

    key: str
    values: Sequence[Any]
    columns: Sequence[tuple[str, Sequence[Series]]]
    where: str = ""
    order: Sequence[str] = ()
    apart: Sequence[str] = ()

    @property
    def looks(self) -> dict[str, Look]:
        """Of each defense but `BEFORE`, no two alike: full lines with marks, thin and broken ones of those apart."""
        found = {one.defense for _, lines in self.columns for one in lines} - {BEFORE}
        listed = sorted(found, key=lambda name: (name not in self.order, [*self.order, name].index(name), name))
        apart = self.apart or listed[1:]
        asked = [name for name in listed if name not in apart]
        others = [name for name in listed if name in apart]
        looks = {name: Look(FULL, MARKS[place % len(MARKS)]) for place, name in enumerate(asked)}
        return looks | {name: Look(*apart_look(place), thin=True) for place, name in enumerate(others)}


def axis_of(sweep: Mapping[str, Sequence[Any]]) -> str:
    """The key along the axis: of those with numbers the one with most values, else the first with most values."""
    numeric = [key for key, values in sweep.items() if all(map(_is_number, values))]
    return max(numeric or list(sweep), key=lambda key: len(sweep[key]))


def sweep_panels(
    table: pd.DataFrame,
    sweep: Mapping[str, Sequence[Any]],
    values_of: Mapping[str, Mapping[str, Any]],
    order: Sequence[str] = (),
    apart: Sequence[str] = (),
) -> list[Panels]:
    """The figures of a sweep: one, unless there are more than two keys or more columns than fit.

    Args:
        table: rows of ``settings.aggregate``.
        sweep: of the study.
        values_of: of each combination, its values by key.
        order: labels of defenses, as the study lists them.
        apart: labels of defenses that the study sets apart.
    """
    axis = axis_of(sweep)
    rest = [key for key in sweep if key != axis]
    second = max(rest, key=lambda key: len(sweep[key])) if rest else None
    others = [key for key in rest if key != second]
    values = sorted(sweep[axis]) if all(map(_is_number, sweep[axis])) else list(sweep[axis])
    groups: dict[tuple[Any, ...], dict[Any, list[str]]] = {}
    for name, own in values_of.items():
        column = "" if second is None else own[second]
        groups.setdefault(tuple(own[key] for key in others), {}).setdefault(column, []).append(name)
    found = []
    for fixed, columns in groups.items():
        where = ", ".join(f"{key} {_text(value)}" for key, value in zip(others, fixed, strict=True))
        drawn = []
        for value, names in columns.items():
            places = {name: values.index(values_of[name][axis]) for name in names}
            title = "" if second is None else f"{second} {_text(value)}" if _is_number(value) else str(value)
            drawn.append((title, sweep_series(table, places)))
        for start in range(0, len(drawn), MOST_PANELS):
            found.append(Panels(axis, values, drawn[start : start + MOST_PANELS], where, order, apart))
    return found


def sweep_series(table: pd.DataFrame, places: Mapping[str, int]) -> list[Series]:
    """The lines of a column: of each attack the model before repair, each baseline, each search's published setting.

    Args:
        places: of each combination on the axis.
    """
    own = table[table["combination"].isin(list(places)) & (table["attack"] != ALL_ATTACKS)]
    own = with_fixed_settings(own)
    own = own[own["role"].ne("control") & own["asr_report"].notna() & own["cells"].gt(0)]
    found = []
    for attack, group in own.groupby("attack", sort=True):
        before = on_victims(group).drop_duplicates("combination")
        found.append(_series(str(attack), BEFORE, before, places, "_before_report"))
        for defense, rows in group[group["defense"] != "none"].groupby("defense_label", sort=True):
            found.append(_series(str(attack), str(defense), rows, places, "_report"))
    return found


def _series(attack: str, defense: str, rows: pd.DataFrame, places: Mapping[str, int], suffix: str) -> Series:
    rows = rows.assign(place=rows["combination"].map(places)).sort_values("place")
    rates = {}
    spread = suffix == "_report"
    for column in RATES:
        # A model that collapsed has an ASR of 0 by accident: it counts as the worst there is.
        own = AS_TOLD[column] if spread else column.replace("_report", suffix)
        mean = rows[own].astype(float).tolist()
        least, most = ((rows[f"{own}_{end}"].astype(float).tolist() if spread else mean) for end in ("min", "max"))
        rates[column] = (mean, least, most)
    return Series(attack, defense, rows["place"].tolist(), rates)


def sweep_png(title: str, panels: Panels) -> Figure:
    """The figure for print: ASR above, clean accuracy below."""
    attacks = list(dict.fromkeys(one.attack for _, lines in panels.columns for one in lines))
    looks = panels.looks
    count = len(panels.columns)
    width = COLUMN_WIDTH if count == 1 else min(TEXT_WIDTH, 0.6 + 1.9 * count)
    told = {ATTACK: _attack_lines(attacks), DEFENSE: _defense_lines(panels)}
    rows = _legend_rows(list(told.values()), width)
    figure = canvas(width, 3.8 + 0.14 * rows)
    axes = figure.subplots(2, count, squeeze=False, sharex=True, sharey="row")
    for column, (head, lines) in enumerate(panels.columns):
        for row, (rate, words) in enumerate(RATES.items()):
            axis = axes[row][column]
            for one in lines:
                colour, _ = searched_style(attacks.index(one.attack))
                _draw(axis, panels.values, one, rate, colour, looks.get(one.defense))
            if not lines:  # no model there holds a backdoor, or nothing has ended yet
                axis.text(0.5, 0.5, "no result", transform=axis.transAxes, ha="center", color=GREY, fontsize=FONT)
            _dress(axis, panels)
            if column == 0:
                axis.set_ylabel(words)
            if row == 0:
                axis.set_title(head)
            else:
                axis.set_xlabel(panels.key)
            axis.set_ylim(*((-0.02, 1.02) if row == 0 else (None, None)))
            for_print(axis)
    where = f" ({panels.where})" if panels.where else ""
    figure.suptitle(f"{title}{where}: report half", fontsize=FONT, fontweight="bold")
    places: dict[str, Literal["outside lower left", "outside lower right"]]
    places = {ATTACK: "outside lower left", DEFENSE: "outside lower right"}
    for head, shown in told.items():
        if shown:
            own = {"title": head, "ncols": -(-len(shown) // rows), **_LEGEND}
            figure.legend(list(shown.values()), list(shown), loc=places[head], **own).set_alignment("left")
    return figure


_LEGEND: dict[str, Any] = {
    "fontsize": SMALL_FONT,
    "title_fontsize": SMALL_FONT,
    "frameon": False,
    "columnspacing": 1.2,
    "handletextpad": 0.5,
    "handlelength": 3.2,
}


def _legend_rows(legends: Sequence[Mapping[str, Line2D]], width: float) -> int:
    """The fewest rows in which these legends stand beside each other in ``width`` inches, roughly; at least 1."""
    column = [(34 + 0.56 * SMALL_FONT * max(map(len, names), default=1)) / 72 for names in legends]
    most = max(map(len, legends), default=1)
    for rows in range(1, most):
        if sum(wide * -(-len(names) // rows) for wide, names in zip(column, legends, strict=True)) <= width:
            return rows
    return max(1, most)


def _attack_lines(attacks: Sequence[str]) -> dict[str, Line2D]:
    """What the legend shows of each attack: its colour."""
    return {name: Line2D([], [], color=searched_style(place)[0], linewidth=2.5) for place, name in enumerate(attacks)}


def _defense_lines(panels: Panels) -> dict[str, Line2D]:
    """What the legend shows of the models before repair and of each defense: the look of its lines in any colour."""
    lines = {name: _line(look, LEGEND_INK) for name, look in panels.looks.items()}
    there = {one.defense for _, drawn in panels.columns for one in drawn}
    return {BEFORE: _line(None, LEGEND_INK)} | lines if BEFORE in there else lines


def _line(look: Look | None, colour: str) -> Line2D:
    return Line2D([], [], color=colour, **_style(look))


def _style(look: Look | None) -> dict[str, Any]:
    """Matplotlib's settings of a line; without a look, of what was to be repaired: faint and dotted."""
    if look is None:
        return {"linewidth": 0.8, "alpha": 0.45, "linestyle": DOTTED}
    common: dict[str, Any] = {"linestyle": look.dashes, "marker": look.mark, "markersize": 3}
    if look.thin:
        return common | {"linewidth": 0.7, "markerfacecolor": "white", "markeredgewidth": 0.6}
    return common | {"linewidth": 1.5}


def _draw(axis: Axes, values: Sequence[Any], one: Series, rate: str, colour: str, look: Look | None) -> None:
    x = [float(values[place]) if _is_axis(values) else float(place) for place in one.place]
    mean, least, most = (np.array(part) for part in one.rates[rate])
    axis.plot(x, mean, color=colour, label=one.name, **_style(look))
    if look is not None:
        axis.fill_between(x, least, most, color=colour, alpha=0.06 if look.thin else 0.12, linewidth=0)


def _dress(axis: Axes, panels: Panels) -> None:
    axis.yaxis.set_major_formatter(percent_tick)
    values = panels.values
    if not _is_axis(values):
        axis.set_xticks(range(len(values)), [_text(value) for value in values])
        axis.set_xlim(-0.3, len(values) - 0.7)
        return
    if _is_log(values):
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks([float(value) for value in values], [_text(value) for value in values])
    axis.axhline(0.0, color=GREY, linewidth=0.3, zorder=0)


def _is_axis(values: Sequence[Any]) -> bool:
    return all(map(_is_number, values))


def _is_log(values: Sequence[Any]) -> bool:
    return bool(min(values) > 0 and max(values) / min(values) >= LOG_FROM)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
