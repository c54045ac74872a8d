"""report.html as a whole: what was asked and found, then attack by attack, what went wrong, what was run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import plotly.offline
import yaml

from study.record.cost import epochs
from study.record.victims import Judged, Key, absent, absent_in_words
from study.record.words import percent
from study.report import captions, matrix, template
from study.report.gone import gone_html
from study.report.html import escape, folded, plural, slug, table_html
from study.report.lead import study_lead
from study.report.targets import target_text
from study.results.in_words import settings_text
from study.results.outcomes import outcome_counts
from study.results.rows import ALL_ATTACKS, charged_epochs, collapsed, without_beside
from study.results.scores import STATUSES
from study.results.verdicts import Verdict, shared_members, verdicts
from study.spec.combinations import in_words, names_of

NOTHING_FOUND = "the defense found nothing to repair"


def page(
    spec: Mapping[str, Any],
    directory: Path,
    frame: pd.DataFrame,
    table: pd.DataFrame,
    members: pd.DataFrame,
    sections: Sequence[str],
    notes: Sequence[str],
    unfinished: Sequence[str] = (),
    judged: Mapping[Key, Judged] = MappingProxyType({}),
    sweep: str = "",
    dropped: Sequence[str] = (),
) -> str:
    """The HTML of the whole page.

    Args:
        spec: study.yaml, as written; empty where there is none.
        directory: of the study.
        frame: ledger rows.
        table: rows of ``settings.aggregate``, those over all attacks included where there are such searches.
        members: rows of ``fronts.fronts``.
        sections: HTML of all attacks beside each other, if there are several, and of each.
        notes: what is wrong with the ledger itself.
        unfinished: what still has trials to come, a line each.
        judged: what is known of the victims.
        sweep: HTML of what the sweep shows; empty without one.
        dropped: what races have saved, a line each.
    """
    named = frame["study"].dropna()
    name = str(spec.get("name") or (named.iloc[0] if len(named) else directory.name))
    body = [
        f"<h1>{escape(name)}: what does removing the backdoor cost?</h1>",
        _progress(spec, frame, unfinished, judged, dropped),
    ]
    links = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join([sweep, *sections]))
    if links:
        places = [
            ("page-found", "what was found"),
            *links,
            ("page-wrong", "what went wrong"),
            ("page-run", "what was run"),
        ]
        body.append("<nav>" + " · ".join(f'<a href="#{to}">{title}</a>' for to, title in places) + "</nav>")
    body.append(folded("How to read this page", captions.READING_AID, "page-reading"))
    body += [sweep] if sweep else []
    if sections:
        body.append(_what_was_found(spec, frame, table, members))
    body += [*sections, _troubles(frame, notes, judged), _what_was_run(spec, directory, frame)]
    return template.TEMPLATE.format(
        title=escape(name),
        style=template.STYLE + matrix.STYLE,
        plotly=plotly.offline.get_plotlyjs() if sections else "",
        script=template.SCRIPT if sections else "",
        body="\n".join(body),
    )


def title_of(attack: str, dataset: str, model: str, places: int, swept: str = "") -> str:
    """Heading of an attack's section: with data set and model where the page has several (``places``) of them.

    Args:
        swept: of a sweep, the keys and values of the combination, as in the rows: they take their place.
    """
    if words := in_words(swept):
        return f"{attack}, {words}"
    return attack if places == 1 else f"{attack}, {dataset}, {model}"


def places_of(table: pd.DataFrame, spec: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Combination, data set and model of all sections, combinations in the order of the spec's sweep."""
    sweep = spec.get("sweep")
    order = {name: place for place, name in enumerate(names_of(sweep))} if isinstance(sweep, Mapping) else {}
    found = set(table[["combination", "dataset", "model"]].itertuples(index=False, name=None))
    return sorted(found, key=lambda place: (order.get(place[0], len(order)), *place))


def swept_in(rows: pd.DataFrame) -> str:
    """The column ``swept`` of the rows of one combination; empty where nothing is swept."""
    known = rows["swept"].dropna()
    return str(known.iloc[0]) if len(known) else ""


def _what_was_found(spec: Mapping[str, Any], frame: pd.DataFrame, table: pd.DataFrame, members: pd.DataFrame) -> str:
    """The matrix and the lead of every data set and model."""
    out = ['<section id="page-found"><h2>What was found: attack × defense</h2>']
    counts = outcome_counts(frame)
    places = places_of(table, spec)
    for combination, dataset, model in places:
        own, fronts, rows = (
            one[(one["combination"] == combination) & (one["dataset"] == dataset) & (one["model"] == model)]
            for one in (table, members, without_beside(frame))
        )
        swept = swept_in(rows)
        attacks = {str(attack): group for attack, group in rows.groupby("attack", sort=True)}
        targets = {attack: target_text(group, spec) for attack, group in attacks.items()}
        links = {attack: slug(title_of(attack, dataset, model, len(places), swept)) for attack in attacks}
        if len(places) > 1:
            out.append(f"<h3>{escape(in_words(swept) or f'{dataset}, {model}')}</h3>")
        pairs = _pairs(own, fronts)
        out.append(gone_html(own, counts, pairs))
        out.append(matrix.matrix_html(matrix.matrix_of(own, fronts, counts, targets), links))
        out.append(study_lead(pairs, rows))
    return "\n".join([*out, "</section>"])


def _pairs(table: pd.DataFrame, members: pd.DataFrame) -> list[tuple[str, Verdict]]:
    """(attack, verdict) of every search of one data set and model; one over all attacks counts once, for its means."""
    shared = set(shared_members(members)["defense_label"])
    pairs = []
    for attack, group in table.groupby("attack", sort=True):
        for one in verdicts(group, members[members["attack"] == attack]):
            if (one.defense in shared) == (attack == ALL_ATTACKS):
                pairs.append((str(attack), one))
    return pairs


def _progress(
    spec: Mapping[str, Any],
    frame: pd.DataFrame,
    unfinished: Sequence[str],
    judged: Mapping[Key, Judged],
    dropped: Sequence[str],
) -> str:
    said = absent_in_words(judged, _policy(spec))
    no_backdoor = f" <b>{escape(said[0].removesuffix(':'))}</b>; why, says <i>What went wrong</i>." if said else ""
    if not len(frame) and judged and len(absent(judged)) == len(judged):
        return f'<p class="lead">No trial was run.{no_backdoor}</p>'
    if not len(frame):
        return '<p class="lead">No trial has finished yet. This page fills as the study runs: write it again with '
        "<code>superft report</code>.</p>"
    counts = frame["status"].value_counts()
    words = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
    ruined = int(collapsed(frame).sum())
    words += f"; {ruined} left a collapsed model" if ruined else ""
    text = f"{len(frame)} {plural('trial', len(frame))} finished ({words})."
    text += f" Racing: {escape('; '.join(dropped))}." if dropped else ""
    if unfinished:
        text += f" <b>The study is not finished</b> ({escape('; '.join(unfinished))})."
    return f'<p class="lead">{text}{no_backdoor}</p>'


def _policy(spec: Mapping[str, Any]) -> str:
    """``victim.require_implanted`` of a spec as written."""
    victim = spec.get("victim")
    return str(victim.get("require_implanted", "skip")) if isinstance(victim, Mapping) else "skip"


def _troubles(frame: pd.DataFrame, notes: Sequence[str], judged: Mapping[Key, Judged]) -> str:
    out = ['<section id="page-wrong"><h2>What went wrong</h2>']
    bad = frame[frame["status"].isin(["failed", "diverged", "abstained"])]
    missing = absent(judged)
    if len(bad):
        out.append(
            "<p>A failed trial is in no figure; a diverged one counts as the worst point (ASR 100 %, accuracy 0 %); "
            "one that abstained counts with the model as it was.</p>"
        )
        rows = [
            {
                "status": str(row["status"]),
                "trial": str(row["trial"]),
                "attack": str(row["attack"]),
                "defense": str(row["defense_label"]),
                "seed": str(row["seed"]),
                "setting": settings_text(row),
                "cause": str(row["error"] or (NOTHING_FOUND if row["status"] == "abstained" else "not recorded")),
            }
            for row in bad.sort_values("status", kind="stable").to_dict("records")
        ]
        out.append(table_html(rows))
    if missing:
        out.append(
            "<p>In these models no backdoor took hold (full test set), so nothing can be said about removing it:</p>"
        )
        rows = [
            {
                "attack": one.attack,
                "seed": str(one.seed),
                "ASR before": percent(one.asr),
                "ASR-base": percent(one.asr_base),
                "clean accuracy before": percent(one.clean_accuracy),
                "which condition failed": str(one.not_implanted),
            }
            for one in missing.values()
        ]
        out.append(table_html(rows))
    out += [f"<p>{escape(note)}</p>" for note in notes]
    if len(out) == 1:
        out.append("<p>Nothing: no trial failed or diverged, every backdoor was implanted, the ledger is whole.</p>")
    return "\n".join([*out, "</section>"])


def _what_was_run(spec: Mapping[str, Any], directory: Path, frame: pd.DataFrame) -> str:
    facts: dict[str, str] = {}
    for label, column in (("data set", "dataset"), ("model", "model"), ("attacks", "attack"), ("seeds", "seed")):
        facts[label] = ", ".join(str(v) for v in sorted(frame[column].dropna().unique()))
    for label, role in (("searched defenses", "search"), ("baselines", "baseline")):
        facts[label] = ", ".join(sorted(frame.loc[frame["role"] == role, "defense_label"].unique()))
    if len(frame):
        clean, triggered = (frame[f"n_{kind}"].max() for kind in ("clean", "triggered"))
        if not pd.isna(clean) and not pd.isna(triggered):
            half = f"report half: {frame['n_clean_report'].max()} and {frame['n_triggered_report'].max()}"
            facts["test images"] = f"{clean} clean, {triggered} triggered ({half})"
        hours = frame["wall_seconds"].sum() / 3600
        spent = charged_epochs(frame).sum()
        facts["cost of all trials"] = f"{spent:.1f} E, {hours:.2f} hours of trial time ({captions.E_WORDS})"
        if frame["seconds_aftermath"].notna().any():
            asked = frame[frame["seconds_aftermath"].notna()]
            kinds = ("forward", "backward", "input_backward")
            forward, backward, inputs = (asked[f"aftermath_{kind}_samples"] for kind in kinds)
            work = epochs(forward, backward, inputs, asked["train_size"]).sum()
            hours = asked["seconds_aftermath"].sum() / 3600
            facts["cost of the aftermath"] = f"{work:.1f} E, {hours:.2f} hours, beside that of the trials"
        facts["devices"] = "; ".join(sorted(frame["device"].dropna().unique()))
        facts["versions"] = " | ".join(sorted(frame["versions"].dropna().unique()))
        started = frame["started"].dropna()
        facts["trials started"] = f"{started.min()} to {started.max()}" if len(started) else ""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items() if v)
    command = "superft run study.yaml --out ."
    dump = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True) if spec else "(no study.yaml)"
    return (
        f'<section id="page-run"><h2>What was run</h2><div class="wide"><table class="facts">{rows}</table></div>'
        f"<p>In this folder, <code>{command}</code> continues the study; with another <code>--out</code> it runs it "
        "again. "
        f"<code>superft report {escape(directory.resolve().name)}</code> in the folder above writes this page again. "
        "All numbers come from <code>trials.jsonl</code> (<code>trials.csv</code> is the same as a table), the front "
        "from <code>front.csv</code>; PNGs of the figures are in <code>figures/</code>.</p>"
        + folded("The full study.yaml", f"<pre>{escape(dump)}</pre>", "page-spec")
        + "</section>"
    )
