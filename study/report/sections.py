"""The report's part on one attack: its lead, figures and tables. What matters is open, the rest is folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from study.record.words import percent
from study.report import captions
from study.report.aftermath import aftermath_parts
from study.report.cells import (
    confirmed_table,
    cost_table,
    detection_table,
    honours,
    hypervolume_table,
    repeats_table,
    rules_table,
    start_of,
    status_text,
    told,
)
from study.report.detectors import CAPTION_TUNED
from study.report.figures.registry import AttackTables, draw_all
from study.report.figures.style import PLOTLY_CONFIG
from study.report.html import Table, embedded, escape, folded, number, plain, plural, rate, slug, table_html
from study.report.lead import attack_lead
from study.results.common import common_text
from study.results.importance import RESAMPLES, TARGETS, Importance
from study.results.in_words import models_of, rule_in_words, settings_of, settings_text
from study.results.rows import ALL_ATTACKS, true_status
from study.results.settings import on_victims
from study.results.verdicts import verdicts
from trainables.evaluation.metrics import der, rir

# Figures that have a place of their own on the page; others follow each other, by name.
PLACED = ("connectivity", "front", "hypervolume", "importance", "reinjection", "worst")


@dataclass(frozen=True)
class Drawn:
    """One figure of the page: for the page, for print, and the name of both."""

    name: str
    html: str
    png: bytes | None
    title: str = ""


def attack_section(
    title: str, trigger: Path, tables: AttackTables, target: str = "", tuned: Table | None = None
) -> tuple[str, dict[str, bytes], list[str]]:
    """HTML of one attack, its figures for print by name, and a line for each figure that could not be drawn.

    Args:
        title: the attack, with data set and model where there are several.
        trigger: the trigger's picture, if there is such a file.
        target: the attacker's class in words.
        tuned: the detectors that were tuned before the trials.
    """
    name = slug(title)
    settings, members, rows = tables.settings, tables.members, tables.rows
    heading = f"all attacks ({rule_in_words(settings)})" if title == ALL_ATTACKS else title
    troubles: list[str] = []
    figures = _figures(heading, name, tables, troubles)
    out = [f'<section id="{name}"><h2>{escape(heading)}</h2>']
    out.append(attack_lead(settings, verdicts(settings, members, tables.shared), rows, target))
    if "front" in figures:
        out.append("<h3>What each repair costs</h3>" + figures["front"].html + captions.CAPTION_FRONT)
        if table := before_after(settings, members):
            out.append("<h3>Before and after repair</h3>" + table_html(table, last="setting") + captions.CAPTION_TABLE)
    else:
        out.append(_why_empty(rows))
    parts = _folded_parts(name, heading, trigger, tables, figures, tuned or [])
    if len(parts) > 1:
        links = " · ".join(f'<a href="#{escape(key)}">{escape(title)}</a>' for key, (title, _) in parts.items())
        out.append(f'<p class="note">More on {escape(heading)}: {links}</p>')
    out += [folded(title, content, key) for key, (title, content) in parts.items()]
    pictures = {one.name: one.png for one in figures.values() if one.png is not None}
    return "\n".join([*out, "</section>"]), pictures, troubles


def _figures(heading: str, name: str, tables: AttackTables, troubles: list[str]) -> dict[str, Drawn]:
    """Every figure of an attack, by the name under which it is registered."""
    drawn: dict[str, Drawn] = {}
    for key, (made, png) in draw_all(heading, tables, troubles).items():
        page = "" if made.page is None else _plot(made.page, f"{key}-{name}")
        if not page and png is not None:
            page = embedded(png, made.title or key)
        page += f'<p class="note">{escape(made.note)}</p>' if made.note else ""
        drawn[key] = Drawn(f"{key}_{name}", page, png, made.title or key)
    return drawn


def _folded_parts(
    name: str,
    heading: str,
    trigger: Path,
    tables: AttackTables,
    figures: Mapping[str, Drawn],
    tuned: Table,
) -> dict[str, tuple[str, str]]:
    """What is opened on demand: id -> (title, content), in the order of the page; parts without content are left out.

    Keys begin with the name of the attack's section, so that they are unique on the page.
    """
    settings, members = tables.settings, tables.members
    parts: dict[str, tuple[str, str]] = {}

    def add(key: str, title: str, content: str) -> None:
        parts[f"{name}-{key}"] = (title, content)

    if trigger.is_file():
        add("trigger", "The trigger", _picture(trigger, f"The trigger of {heading}") + captions.CAPTION_TRIGGER)
    if len(members):
        title = f"The front: {len(members)} {plural('setting', len(members))}"
        table = table_html(_front_table(members, settings)) + captions.CAPTION_MEMBERS
        add("members", title, table + "".join(_common(tables)))
    if len(tables.beside):
        title = "The searches under equal rules" if len(tables.beside) > 1 else "Hypervolume"
        add("rules", title, table_html(hypervolume_table(tables.beside)) + captions.CAPTION_PARITY)
    if len(tables.costs) and "front" in figures:
        add("costs", "What tuning took", table_html(cost_table(tables.costs, settings)) + captions.CAPTION_COSTS)
    if "hypervolume" in figures:
        add("long", "Was the search long enough?", figures["hypervolume"].html + captions.CAPTION_HYPERVOLUME)
        drawn = figures["importance"].html + captions.CAPTION_IMPORTANCE if "importance" in figures else ""
        add("parameters", "Which parameters mattered?", drawn + "".join(_importance_notes(tables.importances)))
    if len(tables.repeated):
        table = table_html(repeats_table(tables.repeated)) + captions.CAPTION_REPEATS
        add("repeats", "Would another search find as much?", table)
    if len(tables.confirmed):
        table = table_html(confirmed_table(tables.confirmed, tables.curse)) + captions.CAPTION_CONFIRMED
        add("confirmed", "Does the choice hold on fresh seeds?", table)
    if "worst" in figures:
        content = figures["worst"].html + table_html(rules_table(tables.by_rule)) + captions.CAPTION_RULES
        add("worst", figures["worst"].title, content)
    pages = {key: one.html for key, one in figures.items()}
    for key, (title, content) in aftermath_parts(tables.rows, pages).items():
        add(key, title, content)
    for key in sorted(set(figures) - set(PLACED)):
        add(key, figures[key].title, figures[key].html)
    detectors = ""
    if "front" in figures and (found := detection_table(tables.rows, settings, members)):
        detectors = table_html(found) + captions.CAPTION_DETECTION
    if tuned:
        detectors += table_html(tuned, last="setting") + CAPTION_TUNED
    if detectors:
        add("detectors", "What the detectors found", detectors)
    return parts


def before_after(settings: pd.DataFrame, members: pd.DataFrame) -> Table:
    """Table of one attack: before repair, baselines, published settings, knee and picks; cells are texts.

    Args:
        settings: rows of ``aggregate`` of this attack.
        members: rows of ``fronts`` of this attack.
    """
    rows: Table = []
    measured = on_victims(settings)
    if len(measured):
        first = measured.iloc[0]
        before = {"model": "before repair", "status": "–", "setting": ""}
        before["ASR"] = rate(first, "asr_before")
        before["clean accuracy"] = rate(first, "clean_accuracy_before")
        before["RA"] = rate(first, "robust_accuracy_before")
        rows.append(before | {"DER": "0.500", "RIR": "0.500", "ASR-base": percent(first["asr_base"])})
    rows += [{"model": name, **_measured(one)} for name, one in told(settings, members)]
    return rows


def _why_empty(rows: pd.DataFrame) -> str:
    """The line of an attack that has nothing to draw."""
    absent = rows[true_status(rows) == "backdoor_not_implanted"]
    if not len(absent):
        return "<p>No trial has a result yet; see <i>What went wrong</i> below.</p>"
    victims = absent.drop_duplicates(["attack", "seed"])
    rates = ", ".join(percent(value) for value in victims["asr_before"])
    accuracies = ", ".join(percent(value) for value in victims["clean_accuracy_before"])
    return (
        f"<p><b>The backdoor was not implanted</b>, so there is nothing to repair and no picture: before any repair "
        f"ASR was {rates} at clean accuracy {accuracies} (full test set). Its {len(rows)} "
        f"{plural('trial', len(rows))} {'counts' if len(rows) == 1 else 'count'} in no front; which condition for a "
        "backdoor failed says <i>What went wrong</i> below.</p>"
    )


def _common(tables: AttackTables) -> list[str]:
    """What the front of each search has in common, a line each."""
    lines = []
    for label, group in tables.searched.groupby("defense_label", sort=True):
        front = tables.members[tables.members["defense_label"] == label]
        if text := common_text(group, front["trial"].tolist(), tables.spaces.get(str(label))):
            lines.append(f'<p class="note">{escape(str(label))}: {escape(text)}</p>')
    return lines


def _importance_notes(found: Mapping[str, Importance]) -> list[str]:
    """One line per note, with the defenses that share it; what is told from chance, and parameters of some settings."""
    owners: dict[str, list[str]] = {}
    for name, one in found.items():
        if one.notes:
            owners.setdefault(" ".join(one.notes), []).append(name)
    lines = [(", ".join(names), note) for note, names in owners.items()]
    lines += [(name, told_text(one)) for name, one in found.items() if one.told]
    lines += [(name, branches_text(one)) for name, one in found.items() if one.branches]
    return [f'<p class="note">{escape(names)}: {escape(note)}</p>' for names, note in lines]


def told_text(one: Importance) -> str:
    """Which parameters explain more than a column of random numbers, target by target."""
    parts = [f"{TARGETS[target]}: {', '.join(names) or 'none'}" for target, names in one.told.items()]
    return (
        f"More than a column of random numbers explains, in 95 % of {RESAMPLES} resamples of the settings – "
        f"{'; '.join(parts)}. Whether the others do cannot be told from {one.trials} settings."
    )


def branches_text(one: Importance) -> str:
    """The parameters that only some settings have, each among those."""
    parts = []
    for name, branch in one.branches.items():
        shares = [f"{TARGETS[target]} {percent(share)}" for target, share in branch.shares.items()]
        told = (
            f", more than chance for {' and '.join(TARGETS[target] for target in branch.told)}" if branch.told else ""
        )
        parts.append(f"{name} ({branch.trials} of {one.trials}): {', '.join(shares) or 'nothing'}{told}")
    return f"Parameters that only some settings have, and their share among those alone – {'; '.join(parts)}."


def _picture(path: Path, description: str) -> str:
    """A PNG within the page, so that it stays one file."""
    return embedded(path.read_bytes(), description)


def _measured(one: pd.Series[Any]) -> dict[str, str]:
    """Cells of a repaired model: report half, with 95 % intervals."""
    cells = {"setting": settings_text(one), "status": status_text(one)}
    if pd.isna(one["asr_report"]):
        return cells
    asr, accuracy = one["asr_report"], one["clean_accuracy_report"]
    before, accuracy_before = one["asr_before_report"], one["clean_accuracy_before_report"]
    cells["ASR"] = rate(one, "asr")
    cells["clean accuracy"] = rate(one, "clean_accuracy")
    cells["RA"] = rate(one, "robust_accuracy")
    cells["DER"] = number(der(before, asr, accuracy_before, accuracy), 3)
    ra = rir(one["robust_accuracy_before_report"], one["robust_accuracy_report"], accuracy_before, accuracy)
    cells["RIR"] = number(ra, 3)
    cells["ASR-base"] = percent(one["asr_base"])
    cells["false target rate"] = percent(one["false_target_rate"])
    cells["E"] = number(one["epochs_alone"], 2)
    cells["seconds"] = number(one["wall_seconds"], 1)
    if one["cells"] > 1:
        span = f"{percent(one['asr_report_min'])} to {percent(one['asr_report_max'])}"
        cells["runs"] = f"{one['cells']} (ASR {span})"
    if words := models_of(one):
        cells["models"] = words
    return cells


def _front_table(members: pd.DataFrame, settings: pd.DataFrame) -> Table:
    searched = settings[settings["role"] == "search"]
    places = zip(searched["defense_label"], searched["trial"], strict=True)
    measured = dict(zip(places, searched.to_dict("records"), strict=True))
    chosen = members.to_dict("records")
    # Several defenses have few settings in common: a column for each would be mostly empty.
    alone = members["defense_label"].nunique() == 1
    names = sorted({name for one in chosen for name in settings_of(one)})
    rows: Table = []
    for one in chosen:
        own = {str(key): value for key, value in measured[one["defense_label"], one["trial"]].items()}
        row = {"defense": str(one["defense_label"]), "rank": str(one["rank"]), "trial": str(one["trial"])}
        words = [honours(one), "published" if one["published"] else "", start_of(one)]
        words.append("collapsed" if one["collapsed"] else "")
        row["chosen as"] = ", ".join(filter(None, words))
        row["ASR"] = rate(own, "asr")
        row["clean accuracy"] = rate(own, "clean_accuracy")
        row["search half: ASR"] = percent(one["asr_search"])
        row["search half: accuracy"] = percent(one["clean_accuracy_search"])
        values = settings_of(one)
        if alone:
            row |= {name: plain(values[name]) if name in values else "" for name in names}
        else:
            row["setting"] = settings_text(one)
        if models := models_of(one):
            row["models"] = models
        row["E"] = number(own["epochs_alone"], 2)
        row["seconds"] = number(one["wall_seconds"], 1)
        rows.append(row)
    return rows


def _plot(figure: Any, name: str) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOTLY_CONFIG)
    return f'<div class="plot">{text}</div>'
