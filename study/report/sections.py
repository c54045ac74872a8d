"""The report's part on one attack: its lead, figures and tables. What matters is open, the rest is folded."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from study.record.words import percent
from study.report import captions
from study.report.cells import cost_table, detection_table, honours, hypervolume_table, status_text, told
from study.report.figures.front import front_picture, front_plotly, front_png
from study.report.figures.hypervolume import hypervolume_plotly, hypervolume_png, hypervolume_series
from study.report.figures.importance import importance_plotly, importance_png
from study.report.figures.style import PLOTLY_CONFIG
from study.report.html import Table, escape, folded, number, plain, plural, rate, slug, table_html
from study.report.lead import attack_lead, measured_on_victims
from study.results.importance import Importance, importance
from study.results.pareto import hypervolume
from study.results.settings import ALL_ATTACKS, on_front, settings_of, settings_text, true_status
from study.results.verdicts import verdicts
from trainables.evaluation.metrics import der, rir
from trainables.victims import IMPLANTED_ACCURACY_DROP, IMPLANTED_ASR


@dataclass(frozen=True)
class AttackTables:
    """All that is known of one attack (on one data set and model): the tables of a study, cut to it.

    ``settings``, ``members``, ``searched``, ``history``, ``beside`` and ``costs`` are what ``settings.aggregate``,
    ``fronts``, ``candidates``, ``hypervolume_over_trials``, ``equal_rules.parity`` and ``search_costs`` return;
    ``rows`` are the ledger's. ``shared`` are the members of the fronts over all attacks, where searches were over
    all of them.
    """

    settings: pd.DataFrame
    members: pd.DataFrame
    searched: pd.DataFrame
    history: pd.DataFrame
    beside: pd.DataFrame
    costs: pd.DataFrame
    rows: pd.DataFrame
    shared: pd.DataFrame


@dataclass(frozen=True)
class Drawn:
    """One figure of the page: for the page, for print, and the name of both."""

    name: str
    html: str
    png: Figure


def attack_section(title: str, trigger: Path, tables: AttackTables, target: str = "") -> tuple[str, dict[str, Figure]]:
    """HTML of one attack, and its figures for print by name.

    Args:
        title: the attack, with data set and model where there are several.
        trigger: the trigger's picture, if there is such a file.
        target: the attacker's class in words.
    """
    name = slug(title)
    heading = "all attacks (means)" if title == ALL_ATTACKS else title
    settings, members, rows = tables.settings, tables.members, tables.rows
    mattered = _importances(tables.searched) if len(tables.history) else {}
    figures = _figures(heading, name, tables, mattered)
    out = [f'<section id="{name}"><h2>{escape(heading)}</h2>']
    out.append(attack_lead(settings, verdicts(settings, members, tables.shared), target))
    if "front" in figures:
        out.append("<h3>What each repair costs</h3>" + figures["front"].html + captions.CAPTION_FRONT)
        if table := before_after(settings, members):
            out.append("<h3>Before and after repair</h3>" + table_html(table, last="setting") + captions.CAPTION_TABLE)
    else:
        out.append(_why_empty(rows))
    parts = _folded_parts(name, heading, trigger, tables, figures, mattered)
    if len(parts) > 1:
        links = " · ".join(f'<a href="#{escape(key)}">{escape(title)}</a>' for key, (title, _) in parts.items())
        out.append(f'<p class="note">More on {escape(heading)}: {links}</p>')
    out += [folded(title, content, key) for key, (title, content) in parts.items()]
    return "\n".join([*out, "</section>"]), {one.name: one.png for one in figures.values()}


def _figures(heading: str, name: str, tables: AttackTables, mattered: Mapping[str, Importance]) -> dict[str, Drawn]:
    """Every figure of an attack: the one place that calls what draws."""
    drawn: dict[str, Drawn] = {}
    picture = front_picture(heading, tables.settings, tables.members)
    if picture.marks:
        note = f'<p class="note">{_outside(picture.outside)}</p>' if picture.outside else ""
        page = _plot(front_plotly(picture), f"front-{name}") + note
        drawn["front"] = Drawn(f"front_{name}", page, front_png(picture))
    if not len(tables.history):
        return drawn
    lines = hypervolume_series(tables.history, _published_hypervolume(tables.searched))
    png = hypervolume_png(f"Hypervolume over settings: {heading}", lines)
    page = _plot(hypervolume_plotly(lines), f"hypervolume-{name}")
    drawn["hypervolume"] = Drawn(f"hypervolume_{name}", page, png)
    if any(one.shares for one in mattered.values()):
        png = importance_png(f"Importance of parameters: {heading}", mattered)
        page = _plot(importance_plotly(mattered), f"importance-{name}")
        drawn["importance"] = Drawn(f"importance_{name}", page, png)
    return drawn


def _folded_parts(
    name: str,
    heading: str,
    trigger: Path,
    tables: AttackTables,
    figures: Mapping[str, Drawn],
    mattered: Mapping[str, Importance],
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
        add("members", title, table_html(_front_table(members, settings)) + captions.CAPTION_MEMBERS)
    if len(tables.beside):
        title = "The searches under equal rules" if len(tables.beside) > 1 else "Hypervolume"
        add("rules", title, table_html(hypervolume_table(tables.beside)) + captions.CAPTION_PARITY)
    if len(tables.costs) and "front" in figures:
        add("costs", "What tuning took", table_html(cost_table(tables.costs, settings)) + captions.CAPTION_COSTS)
    if "hypervolume" in figures:
        add("long", "Was the search long enough?", figures["hypervolume"].html + captions.CAPTION_HYPERVOLUME)
        drawn = figures["importance"].html + captions.CAPTION_IMPORTANCE if "importance" in figures else ""
        add("parameters", "Which parameters mattered?", drawn + "".join(_importance_notes(mattered)))
    if "front" in figures and (found := detection_table(tables.rows, settings, members)):
        add("detectors", "What the detectors found", table_html(found) + captions.CAPTION_DETECTION)
    return parts


def before_after(settings: pd.DataFrame, members: pd.DataFrame) -> Table:
    """Table of one attack: before repair, baselines, published settings, knee and picks; cells are texts.

    Args:
        settings: rows of ``aggregate`` of this attack.
        members: rows of ``fronts`` of this attack.
    """
    rows: Table = []
    measured = measured_on_victims(settings)
    if len(measured):
        first = measured.iloc[0]
        before = {"model": "before repair", "status": "–", "setting": ""}
        before["ASR"] = rate(first["asr_before_report"], first["n_triggered_report"])
        before["clean accuracy"] = rate(first["clean_accuracy_before_report"], first["n_clean_report"])
        before["RA"] = rate(first["robust_accuracy_before_report"], first["n_triggered_report"])
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
        f"ASR was {rates} at clean accuracy {accuracies} (full test set). A backdoor counts from ASR "
        f"{IMPLANTED_ASR:.0%} on, in a model at most {100 * IMPLANTED_ACCURACY_DROP:g} points less accurate than a "
        f"clean one. Its {len(rows)} {plural('trial', len(rows))} "
        f"{'counts' if len(rows) == 1 else 'count'} in no front; see <i>What went wrong</i> below.</p>"
    )


def _importances(searched: pd.DataFrame) -> dict[str, Importance]:
    return {str(defense): importance(group) for defense, group in searched.groupby("defense", sort=True)}


def _importance_notes(found: Mapping[str, Importance]) -> list[str]:
    """One line per note, with the defenses that share it."""
    owners: dict[str, list[str]] = {}
    for name, one in found.items():
        if one.notes:
            owners.setdefault(" ".join(one.notes), []).append(name)
    return [f'<p class="note">{escape(", ".join(names))}: {escape(note)}</p>' for note, names in owners.items()]


def _picture(path: Path, description: str) -> str:
    """A PNG within the page, so that it stays one file."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{escape(description)}" src="data:image/png;base64,{content}"></p>'


def _measured(one: pd.Series[Any]) -> dict[str, str]:
    """Cells of a repaired model: report half, with 95 % Wilson intervals of the pooled test images."""
    cells = {"setting": settings_text(one), "status": status_text(one)}
    if pd.isna(one["asr_report"]):
        return cells
    asr, accuracy = one["asr_report"], one["clean_accuracy_report"]
    before, accuracy_before = one["asr_before_report"], one["clean_accuracy_before_report"]
    cells["ASR"] = rate(asr, one["n_triggered_report"])
    cells["clean accuracy"] = rate(accuracy, one["n_clean_report"])
    cells["RA"] = rate(one["robust_accuracy_report"], one["n_triggered_report"])
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
    return cells


def _front_table(members: pd.DataFrame, settings: pd.DataFrame) -> Table:
    counts = settings[settings["role"] == "search"].set_index(["defense", "trial"])
    # Several defenses have few settings in common: a column for each would be mostly empty.
    alone = members["defense"].nunique() == 1
    names = sorted({name for _, one in members.iterrows() for name in settings_of(one)})
    rows: Table = []
    for _, one in members.iterrows():
        n = counts.loc[(one["defense"], one["trial"])]
        row = {"defense": str(one["defense"]), "rank": str(one["rank"]), "trial": str(one["trial"])}
        words = [honours(one), "published" if one["published"] else "", "collapsed" if one["collapsed"] else ""]
        row["chosen as"] = ", ".join(filter(None, words))
        row["ASR"] = rate(one["asr_report"], n["n_triggered_report"])
        row["clean accuracy"] = rate(one["clean_accuracy_report"], n["n_clean_report"])
        row["search half: ASR"] = percent(one["asr_search"])
        row["search half: accuracy"] = percent(one["clean_accuracy_search"])
        values = settings_of(one)
        if alone:
            row |= {name: plain(values[name]) if name in values else "" for name in names}
        else:
            row["setting"] = settings_text(one)
        row["E"] = number(n["epochs_alone"], 2)
        row["seconds"] = number(one["wall_seconds"], 1)
        rows.append(row)
    return rows


def _published_hypervolume(searched: pd.DataFrame) -> dict[str, float]:
    rows = searched[searched["published"]]
    return {
        str(defense): hypervolume(on_front(group)[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float))
        for defense, group in rows.groupby("defense", sort=True)
    }


def _plot(figure: Any, name: str) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOTLY_CONFIG)
    return f'<div class="plot">{text}</div>'


def _outside(n: int) -> str:
    lie = "setting, ruined or diverged, lies" if n == 1 else "settings, ruined or diverged, lie"
    return f"{n} {lie} left of the overview: the button <i>Everything</i> shows the whole plane."
