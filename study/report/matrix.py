"""The first thing on the page: attack x defense, the published setting beside the tuned one, in colours and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report.html import escape, plural, rate
from study.results.in_words import models_of, settings_text
from study.results.outcomes import REMOVED, REMOVED_ASR
from study.results.rows import ALL_ATTACKS, GROUP
from study.results.settings import on_victims
from study.results.verdicts import NO_PICK, Verdict, shared_members, verdicts

# One ramp for both numbers, from good to bad: blue to orange stays apart for every kind of colour-blindness, and all
# steps are light enough for dark text.
COLOURS = ("#7fb5da", "#c3dff0", "#f2f2ee", "#fbd3a5", "#f0954f")
TEXT_COLOUR = "#111111"
ASR_STEPS, LOST_STEPS = (0.05, 0.2, 0.5, 0.8), (0.01, 0.02, 0.05, 0.10)
STYLE = "".join(f".v{step} {{ background: {colour}; color: {TEXT_COLOUR}; }}\n" for step, colour in enumerate(COLOURS))
BEFORE = "before repair"
# What a run came to, in the order in which it is said; "ok" needs no words.
_SAID = {"failed": "failed", "diverged": "diverged", "collapsed": "collapsed", "abstained": "abstained"}


@dataclass(frozen=True)
class Cell:
    """One setting on one attack: numbers of the report half, or the words that stand in their place.

    ``words`` says which condition failed. Rates beside it (fractions; some of several runs were sound) are shown
    without colour; without ``words`` the cell is coloured by both.
    """

    words: str = ""
    asr: float | None = None
    accuracy: float | None = None
    lost: float | None = None  # clean accuracy before less after, fraction
    note: str = ""  # small print below
    hover: str = ""
    same: bool = False  # the tuned setting is the published one: one cell for both


@dataclass(frozen=True)
class Matrix:
    """Rows of cells; a searched defense has two cells per attack (published, tuned), everything else has one."""

    attacks: list[str]
    targets: Mapping[str, str]
    searched: bool
    rows: list[tuple[str, str, dict[str, tuple[Cell, ...]]]] = field(default_factory=list)  # defense, remark, cells


def matrix_of(
    settings: pd.DataFrame,
    members: pd.DataFrame,
    counts: pd.DataFrame,
    targets: Mapping[str, str] | None = None,
) -> Matrix:
    """The matrix of one data set and model.

    Args:
        settings: rows of ``settings.aggregate``, all of one data set and model (per attack, not pooled).
        members: rows of ``fronts.fronts`` of them, those over all attacks included: a search over all attacks picks
            its setting there, and each attack shows its own values of it.
        counts: ``outcomes.outcome_counts``.
        targets: attack -> the attacker's class in words.
    """
    settings = settings[settings["attack"] != ALL_ATTACKS]
    shared = shared_members(members)
    attacks = sorted(settings["attack"].unique())
    before: dict[str, tuple[Cell, ...]] = {}
    baselines: dict[str, dict[str, tuple[Cell, ...]]] = {}
    searches: dict[str, dict[str, tuple[Cell, ...]]] = {}
    for attack in attacks:
        own = settings[settings["attack"] == attack]
        before[attack] = (_before(own),)
        for _, one in own[(own["role"] == "baseline") & (own["defense"] != "none")].iterrows():
            baselines.setdefault(str(one["defense_label"]), {})[attack] = (_cell(one, counts),)
        for verdict in verdicts(own, members[members["attack"] == attack], shared):
            searches.setdefault(verdict.defense, {})[attack] = _pair(verdict, own, counts)
    rows = [(BEFORE, "", before)]
    rows += [(name, "baseline" if searches else "", cells) for name, cells in sorted(baselines.items())]
    rows += [(name, "", cells) for name, cells in sorted(searches.items())]
    return Matrix(attacks, targets or {}, bool(searches), rows)


def matrix_html(matrix: Matrix, links: Mapping[str, str]) -> str:
    """The table in a box of its own that scrolls sideways, with a legend in words.

    Args:
        links: attack -> id of its section on the page.
    """
    wide = 2 if matrix.searched else 1
    heads = "".join(f'<th scope="col" colspan="{wide}">{_head(one, matrix, links)}</th>' for one in matrix.attacks)
    lines = [f'<tr><th rowspan="{wide}">defense</th>{heads}</tr>']
    if matrix.searched:
        pair = '<th scope="col"><small>published</small></th><th scope="col"><small>tuned</small></th>'
        lines.append(f"<tr>{pair * len(matrix.attacks)}</tr>")
    body = []
    for name, remark, cells in matrix.rows:
        small = f"<br><small>{escape(remark)}</small>" if remark else ""
        line = [f'<th scope="row">{escape(name)}{small}</th>']
        for attack in matrix.attacks:
            shown = cells.get(attack, (Cell("not run"),))
            shown = shown[:1] if shown[-1].same else shown
            span = wide if len(shown) == 1 else 1
            line += [_td(one, span, plain=name == BEFORE) for one in shown]
        body.append(f"<tr>{''.join(line)}</tr>")
    table = f"<table><thead>{''.join(lines)}</thead><tbody>{''.join(body)}</tbody></table>"
    return f'{legend_html(matrix.searched)}<div class="wide matrix">{table}</div>'


def legend_html(searched: bool) -> str:
    """What the numbers, colours and words of the matrix mean."""
    asr = _steps("up to", ASR_STEPS, " %", "more")
    lost = _steps("up to", LOST_STEPS, " points", "more")
    tuned = (
        "<i>Published</i>: the setting that the method's authors state. <i>Tuned</i>: what the search picks if it may "
        "lose 1 point of clean accuracy; it picks on the other half of the test set, so here the loss can be a little "
        "larger. One cell across both columns: the search picked the published setting itself, or the defense was "
        "not searched. "
        if searched
        else ""
    )
    return (
        '<p class="legend">In each cell, above: attack success rate (<b>ASR</b>, less is better); below: <b>clean '
        f"accuracy</b> (more is better). {tuned}Blue is good, orange is bad:</p>"
        f'<p class="legend">ASR {asr}</p>'
        f'<p class="legend">Clean accuracy lost against the model before repair {lost}</p>'
        '<p class="legend"><span class="void">Grey with words</span> no number to trust. <i>Not implanted</i>: the '
        "attack left no backdoor that could be removed. <i>Collapsed</i>: the model has all but stopped classifying. "
        "<i>Abstained</i>: the defense found nothing to repair and left the model as it was. <i>Diverged</i>: the "
        "training blew up. <i>Failed</i>: the run ended with an error.</p>"
    )


def step_of(value: float, steps: Sequence[float]) -> int:
    """Place of a value on the ramp: 0 (good) to ``len(steps)`` (bad)."""
    return sum(value > limit + 1e-9 for limit in steps)


def _pair(verdict: Verdict, own: pd.DataFrame, counts: pd.DataFrame) -> tuple[Cell, Cell]:
    published = Cell("not run") if verdict.published is None else _cell(verdict.published, counts)
    if verdict.tuned is None:
        group = own[(own["role"] == "search") & (own["defense_label"] == verdict.defense)]
        return published, _no_pick(verdict, group, counts)
    same = verdict.published is not None and verdict.tuned["trial"] == verdict.published["trial"]
    return published, dataclasses.replace(_cell(verdict.tuned, counts), same=same)


def _no_pick(verdict: Verdict, group: pd.DataFrame, counts: pd.DataFrame) -> Cell:
    """In place of a tuned setting: why there is none."""
    kinds = (_cell(one, counts).words for _, one in group.iterrows())
    first = next(kinds, None)
    # In a large search mostly the first or second setting ends it.
    if first in {"not implanted", *_SAID.values()} and all(kind == first for kind in kinds):
        return Cell(first)
    if verdict.verdict == NO_PICK or group["complete"].any():
        return Cell("all lose more than 1 point")
    return Cell("no result")


def _before(own: pd.DataFrame) -> Cell:
    measured = on_victims(own)
    if not len(measured):
        absent = (own["status"] == "backdoor_not_implanted").any()
        return Cell("not implanted" if absent else "no result")
    first = measured.iloc[0]
    asr, accuracy = float(first["asr_before_report"]), float(first["clean_accuracy_before_report"])
    return Cell(asr=asr, accuracy=accuracy, lost=0.0, note=_of_victims(first))


def _of_victims(one: pd.Series[Any]) -> str:
    return f"on {words}" if (words := models_of(one)) else ""


def _cell(one: pd.Series[Any], counts: pd.DataFrame) -> Cell:
    """One setting: what its runs came to decides between numbers and words."""
    runs = counts.loc[(*(one[key] for key in GROUP), one["role"], one["trial"])]
    sound = int(runs["ok"])
    total = sound + sum(int(runs[name]) for name in _SAID)
    if not total:
        return Cell("not implanted")
    said = [(int(runs[name]), word) for name, word in _SAID.items() if runs[name]]
    for count, word in said:
        if count == total:
            return Cell(word, hover=_hover(one))
    words = ", ".join(f"{count} of {total} {word}" for count, word in said)
    if not said and not one["complete"]:
        words = f"only {int(one['cells'])} of {int(one['expected_cells'])} runs"
    if pd.isna(one["asr_report"]):
        return Cell(words or "no result", hover=_hover(one))
    notes = []
    if total > 1:
        notes.append(f"ASR ≤ {REMOVED_ASR:.0%} in {int(runs[REMOVED])} of {total}")
    if int(one["models"]) > int(one["models_counted"]) and not words:
        notes.append(f"on {models_of(one)}")
    asr, accuracy = float(one["asr_report"]), float(one["clean_accuracy_report"])
    lost = float(one["clean_accuracy_before_report"]) - accuracy
    return Cell(words, asr, accuracy, lost, "; ".join(filter(None, notes)), _hover(one))


def _hover(one: pd.Series[Any]) -> str:
    parts = [f"{one['defense_label']} on {one['attack']}"]
    if not pd.isna(one["asr_report"]):
        parts.append(f"ASR {rate(one, 'asr')}")
        parts.append(f"clean accuracy {rate(one, 'clean_accuracy')}")
    if one["cells"] > 1:
        parts.append(f"mean of {one['cells']} {plural('run', int(one['cells']))}")
    if words := models_of(one):
        parts.append(f"on {words}")
    if text := settings_text(one):
        parts.append(text)
    return "; ".join(parts)


def _td(cell: Cell, span: int, *, plain: bool) -> str:
    hover = f' title="{escape(cell.hover)}"' if cell.hover else ""
    wide = f' colspan="{span}"' if span > 1 else ""
    small = f"<small>{escape(cell.note)}</small>" if cell.note else ""
    numbers = ""
    if cell.asr is not None and cell.accuracy is not None and cell.lost is not None:
        colours = (f"v{step_of(cell.asr, ASR_STEPS)}", f"v{step_of(cell.lost, LOST_STEPS)}")
        upper, lower = ("", "") if cell.words or plain else (f' class="{name}"' for name in colours)
        numbers = f"<span{upper}>{percent(cell.asr)}</span><span{lower}>{percent(cell.accuracy)}</span>"
    kind = ' class="void"' if cell.words else ' class="plain"' if plain else ""
    words = f"<span>{escape(cell.words)}</span>" if cell.words else ""
    return f"<td{kind}{wide}{hover}>{words}{numbers}{small}</td>"


def _head(attack: str, matrix: Matrix, links: Mapping[str, str]) -> str:
    name = f'<a href="#{escape(links[attack])}">{escape(attack)}</a>' if attack in links else escape(attack)
    target = matrix.targets.get(attack, "")
    return name + (f"<br><small>target class {escape(target)}</small>" if target else "")


def _steps(word: str, limits: Sequence[float], unit: str, last: str) -> str:
    texts = [f"{word} {100 * limit:g}{unit if limit != 0.01 or unit != ' points' else ' point'}" for limit in limits]
    return " ".join(f'<span class="v{step}">{text}</span>' for step, text in enumerate([*texts, last]))
