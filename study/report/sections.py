"""The report's part on one attack: sentences, figures and tables."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
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
from study.report.figures.style import FEW_SEARCHES, PLOTLY_CONFIG
from study.report.html import Table, escape, number, plain, plural, rate, table_html
from study.results.importance import Importance, importance
from study.results.pareto import hypervolume, pick_label
from study.results.settings import ALL_ATTACKS, on_front, settings_of, settings_text, true_status
from trainables.evaluation.metrics import der, rir
from trainables.victims import IMPLANTED_ACCURACY_DROP, IMPLANTED_ASR


def before_after(settings: pd.DataFrame, members: pd.DataFrame) -> Table:
    """Table of one attack: before repair, baselines, published points, knee and picks; cells are texts.

    Args:
        settings: rows of ``aggregate`` of this attack.
        members: rows of ``fronts`` of this attack.
    """
    rows: Table = []
    measured = _of_victims(settings)
    if len(measured):
        first = measured.iloc[0]
        before = {"model": "before repair", "status": "–", "settings": ""}
        before["ASR"] = rate(first["asr_before_report"], first["n_triggered_report"])
        before["clean accuracy"] = rate(first["clean_accuracy_before_report"], first["n_clean_report"])
        before["RA"] = rate(first["robust_accuracy_before_report"], first["n_triggered_report"])
        rows.append(before | {"DER": "0.500", "RIR": "0.500", "ASR-base": percent(first["asr_base"])})
    rows += [{"model": name, **_measured(one)} for name, one in told(settings, members)]
    return rows


def attack_section(
    title: str,
    trigger: Path,
    settings: pd.DataFrame,
    members: pd.DataFrame,
    searched: pd.DataFrame,
    history: pd.DataFrame,
    beside: pd.DataFrame,
    costs: pd.DataFrame,
    rows: pd.DataFrame,
) -> tuple[str, dict[str, Figure]]:
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", title)
    heading = "all attacks (means)" if title == ALL_ATTACKS else title
    out = [f'<section id="{slug}"><h2>{escape(heading)}</h2>']
    drawn: dict[str, Figure] = {}
    table = before_after(settings, members)
    out.append(_in_short(settings, members))
    if trigger.is_file():
        out.append(_picture(trigger, f"The trigger of {heading}") + captions.CAPTION_TRIGGER)
    picture = front_picture(heading, settings, members)
    if picture.marks:
        drawn[f"front_{slug}"] = front_png(picture)
        out.append("<h3>What each repair costs</h3>" + _plot(front_plotly(picture), f"front-{slug}"))
        out.append(f'<p class="note">{_outside(picture.outside)}</p>' if picture.outside else "")
        out.append(captions.CAPTION_FRONT)
    else:
        out.append(_why_empty(rows))
    if picture.marks and table:
        out.append("<h3>Before and after repair</h3>" + table_html(table) + captions.CAPTION_TABLE)
    if picture.marks and (found := detection_table(rows, settings, members)):
        out.append("<h3>What the detectors found</h3>" + table_html(found) + captions.CAPTION_DETECTION)
    if len(beside):
        heading_here = "The searches under equal rules" if len(beside) > 1 else "Hypervolume"
        out.append(f"<h3>{heading_here}</h3>" + table_html(hypervolume_table(beside)) + captions.CAPTION_PARITY)
    if len(costs) and picture.marks:
        out.append("<h3>What tuning took</h3>" + table_html(cost_table(costs, settings)) + captions.CAPTION_COSTS)
    if len(members):
        out.append(f"<h3>The front: {len(members)} {plural('setting', len(members))}</h3>")
        out.append(table_html(_front_table(members, settings)) + captions.CAPTION_MEMBERS)
    if len(history):
        lines = hypervolume_series(history, _published_hypervolume(searched))
        drawn[f"hypervolume_{slug}"] = hypervolume_png(f"Hypervolume over trials: {heading}", lines)
        out.append("<h3>Was the search long enough?</h3>")
        out.append(_plot(hypervolume_plotly(lines), f"hypervolume-{slug}") + captions.CAPTION_HYPERVOLUME)
        importances = {str(defense): importance(group) for defense, group in searched.groupby("defense", sort=True)}
        out.append("<h3>Which settings mattered?</h3>")
        if any(one.shares for one in importances.values()):
            drawn[f"importance_{slug}"] = importance_png(f"Importance of settings: {heading}", importances)
            out.append(_plot(importance_plotly(importances), f"importance-{slug}") + captions.CAPTION_IMPORTANCE)
        out += _importance_notes(importances)
    return "\n".join([*out, "</section>"]), drawn


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


def _in_short(settings: pd.DataFrame, members: pd.DataFrame) -> str:
    """What came out, in sentences; every number from the report half."""
    measured = _of_victims(settings)
    if not len(measured):
        return ""
    first = measured.iloc[0]
    says = [
        f"<b>Before repair</b> {percent(first['asr_before_report'])} of triggered images go to the attacker's class, "
        f"and {percent(first['clean_accuracy_before_report'])} of clean images are classified right."
    ]
    for _, one in measured[(measured["role"] == "baseline") & (measured["defense"] != "none")].iterrows():
        says.append(f"<b>{escape(one['defense'])}</b> (baseline): {_outcome(one)}.")
    searches = measured[measured["role"] == "search"].groupby("defense", sort=True)
    for defense, group in searches:
        own = members[members["defense"] == defense]
        chosen = own[own["picks"].str.split(";").map(lambda labels: pick_label(0.01) in labels)]
        text = ""
        for _, one in group[group["published"]].iterrows():
            text = f"at its published settings {_outcome(one)}"
        if len(chosen) and chosen.iloc[0]["published"]:
            text += ", and the search found nothing better that loses at most 1 point of accuracy"
        elif len(chosen):
            best = chosen.iloc[0]
            text += "; " if text else ""
            text += f"what the search picks if it may lose 1 point of accuracy: {_outcome(best)}"
            text += f" ({escape(settings_text(best))})" if len(searches) <= FEW_SEARCHES else ""
        elif len(own):
            text += ("; " if text else "") + "no setting lost at most 1 point of accuracy in the search"
        says.append(f"<b>{escape(defense)}</b>: {text or 'nothing on its front'}.")
    own = settings[settings["role"] == "search"]
    for defense in sorted(set(own["defense"]) - set(searches.groups)):
        count = int((own["defense"] == defense).sum())
        says.append(f"<b>{escape(defense)}</b>: no result, {_failures(count)}.")
    return "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in says) + "</ul>"


def _of_victims(settings: pd.DataFrame) -> pd.DataFrame:
    """Settings with a result on a backdoored model; controls start from a clean one."""
    return settings[settings["asr_report"].notna() & (settings["role"] != "control")]


def _failures(count: int) -> str:
    return "its only setting failed" if count == 1 else f"all of its {count} settings failed"


def _outcome(one: pd.Series[Any]) -> str:
    if one["status"] == "diverged":
        return "training diverged"
    if one["collapsed"]:
        return f"the model collapsed (clean accuracy {percent(one['clean_accuracy_report'])})"
    where = "" if one["cells"] == 1 else " on at least one model"
    unchanged = f"it abstained{where}: " if one["status"] == "abstained" else ""
    return f"{unchanged}ASR {percent(one['asr_report'])} at clean accuracy {percent(one['clean_accuracy_report'])}"


def _measured(one: pd.Series[Any]) -> dict[str, str]:
    """Cells of a repaired model: report half, with 95 % Wilson intervals of the pooled test images."""
    cells = {"settings": settings_text(one), "status": status_text(one)}
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
            row["settings"] = settings_text(one)
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
    lie = "trial, ruined or diverged, lies" if n == 1 else "trials, ruined or diverged, lie"
    return f"{n} {lie} left of the overview: the button <i>Everything</i> shows the whole plane."
