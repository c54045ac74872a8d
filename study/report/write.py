"""``superft report DIR``: report.html, figures, trials.csv and front.csv, computed from study.yaml and the ledger."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.offline
import yaml
from matplotlib.figure import Figure

from study.record.files import write_atomically
from study.record.ledger import Ledger
from study.record.words import percent
from study.report import captions
from study.report.figures.trigger import TRIGGER_PREFIX
from study.report.html import escape, plural, table_html
from study.report.sections import attack_section
from study.results import equal_rules
from study.results.scores import STATUSES
from study.results.settings import (
    ALL_ATTACKS,
    GROUP,
    aggregate,
    candidates,
    collapsed,
    epochs_equivalent,
    fronts,
    hypervolume_over_trials,
    is_shared,
    settings_text,
)

NOTHING_FOUND = "the defense found nothing to repair"
OWN_FIGURES = ("front_", "hypervolume_", "importance_")


def write_report(directory: Path | str) -> Path:
    """(Re)write trials.csv, front.csv, figures/*.png and report.html of a study folder; its ledger is only read.

    Each file is replaced in one step, so this may run while the study does.

    Returns:
        The path of report.html, one file that needs no network.

    Raises:
        FileNotFoundError: the folder holds neither study.yaml nor trials.jsonl.
        ValueError: study.yaml is no YAML mapping.
    """
    directory = Path(directory)
    spec = _read_spec(directory)
    ledger = Ledger.read(directory / "trials.jsonl")
    frame = ledger.to_frame()
    ledger.write_csv(directory / "trials.csv")
    members = fronts(frame)
    write_atomically(directory / "front.csv", members.to_csv(index=False).encode())

    settings = [aggregate(frame)] + ([aggregate(frame, across_attacks=True)] if is_shared(frame) else [])
    table = pd.concat(settings, ignore_index=True) if len(settings) > 1 else settings[0]
    searched = candidates(frame)
    history = hypervolume_over_trials(frame)
    beside, costs = equal_rules.parity(frame, _budget(spec)), equal_rules.search_costs(frame)
    drawn: dict[str, Figure] = {}
    sections = []
    places = sorted(set(table[["dataset", "model", "attack"]].itertuples(index=False, name=None)), key=_place_order)
    for dataset, model, attack in places:
        parts = [_at(t, dataset, model, attack) for t in (table, members, searched, history, beside, costs, frame)]
        alone = len({place[:2] for place in places}) == 1
        title = attack if alone else f"{attack}, {dataset}, {model}"
        trigger = directory / "figures" / f"{TRIGGER_PREFIX}{attack}.png"
        section, images = attack_section(str(title), trigger, *parts)
        drawn |= images
        sections.append(section)
    _write_figures(directory / "figures", drawn)

    notes = list(ledger.damaged)
    if (aside := directory / "trials.jsonl.damaged").exists():
        lines = aside.read_bytes().count(b"\n")
        notes.append(f"{lines} damaged or repeated {plural('line', lines)} kept aside in {aside.name}")
    content = _page(spec, directory, frame, table, sections, notes)
    write_atomically(directory / "report.html", content.encode())
    return directory / "report.html"


def _budget(spec: Mapping[str, Any]) -> float | None:
    """E per cell that each search could spend, where the study had such a budget."""
    search = spec.get("search")
    budget = search.get("budget_epochs") if isinstance(search, dict) else None
    return float(budget) if isinstance(budget, int | float) else None


def _budgets_spent(frame: pd.DataFrame, budget: float | None) -> set[Any]:
    """GROUP keys of the searches that ended because they had spent their E."""
    if budget is None:
        return set()
    rows = frame.assign(cost=epochs_equivalent(frame).fillna(0.0))[frame["role"] == "search"]
    if is_shared(frame):
        rows = rows.assign(attack=ALL_ATTACKS, cell=rows["attack"].astype(str) + rows["seed"].astype(str))
    else:
        rows = rows.assign(cell=rows["seed"])
    groups = rows.groupby(list(GROUP), dropna=False)
    return {keys for keys, one in groups if one["cost"].sum() >= budget * one["cell"].nunique() * (1 - 1e-9)}


def _page(
    spec: Mapping[str, Any],
    directory: Path,
    frame: pd.DataFrame,
    table: pd.DataFrame,
    sections: Sequence[str],
    notes: Sequence[str],
) -> str:
    name = str(
        spec.get("name") or (frame["study"].dropna().iloc[0] if frame["study"].notna().any() else directory.name)
    )
    body = [f"<h1>{escape(name)}: what does removing the backdoor cost?</h1>", _progress(spec, frame, table)]
    links = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join(sections))
    if links:
        body.append("<nav>" + " · ".join(f'<a href="#{slug}">{title}</a>' for slug, title in links) + "</nav>")
    body += [captions.READING_AID, *sections, _troubles(frame, notes), _what_was_run(spec, directory, frame)]
    return captions.TEMPLATE.format(
        title=escape(name),
        style=captions.STYLE,
        plotly=plotly.offline.get_plotlyjs() if sections else "",
        body="\n".join(body),
    )


def _progress(spec: Mapping[str, Any], frame: pd.DataFrame, table: pd.DataFrame) -> str:
    if not len(frame):
        return '<p class="lead">No trial has finished yet. This page fills as the study runs: write it again with '
        "<code>superft report</code>.</p>"
    counts = frame["status"].value_counts()
    words = ", ".join(f"{counts[status]} {status}" for status in STATUSES if status in counts)
    ruined = int(collapsed(frame).sum())
    words += f"; {ruined} left a collapsed model" if ruined else ""
    text = f"{len(frame)} {plural('trial', len(frame))} finished ({words})."
    search = spec.get("search")
    asked = search.get("trials") if isinstance(search, dict) else None
    own = table[table["role"] == "search"]
    if isinstance(asked, int) and len(own):
        if (own["attack"] == ALL_ATTACKS).any():  # one search over all attacks: the rest are its parts
            own = own[own["attack"] == ALL_ATTACKS]
        done = {keys: group["trial"].nunique() for keys, group in own.groupby(list(GROUP), dropna=False)}
        spent = _budgets_spent(frame, _budget(spec))
        short = [
            f"{place[-2]} / {place[-1]}: {n} of {asked}"
            for place, n in done.items()
            if n < asked and place not in spent
        ]
        if short:
            text += f" <b>The study is not finished</b> ({escape('; '.join(short))} settings)."
    return f'<p class="lead">{text}</p>'


def _troubles(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    out = ["<section><h2>What went wrong</h2>"]
    bad = frame[frame["status"].isin(["failed", "diverged", "abstained"])]
    absent = frame[frame["status"] == "backdoor_not_implanted"]
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
                "defense": str(row["defense"]),
                "seed": str(row["seed"]),
                "settings": settings_text(row),
                "cause": str(row["error"] or (NOTHING_FOUND if row["status"] == "abstained" else "not recorded")),
            }
            for row in bad.sort_values("status", kind="stable").to_dict("records")
        ]
        out.append(table_html(rows))
    if len(absent):
        victims = absent.drop_duplicates(["dataset", "model", "attack", "seed"]).to_dict("records")
        out.append(
            "<p>In these models no backdoor took hold (full test set), so nothing can be said about removing it:</p>"
        )
        rows = [
            {
                "attack": str(row["attack"]),
                "seed": str(row["seed"]),
                "ASR before": percent(row["asr_before"]),
                "clean accuracy before": percent(row["clean_accuracy_before"]),
                "cause": str(row["error"] or ""),
            }
            for row in victims
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
        facts[label] = ", ".join(sorted(frame.loc[frame["role"] == role, "defense"].unique()))
    if len(frame):
        clean, triggered = (frame[f"n_{kind}"].max() for kind in ("clean", "triggered"))
        if not pd.isna(clean) and not pd.isna(triggered):
            half = f"report half: {frame['n_clean_report'].max()} and {frame['n_triggered_report'].max()}"
            facts["test images"] = f"{clean} clean, {triggered} triggered ({half})"
        hours = frame["wall_seconds"].sum() / 3600
        spent = epochs_equivalent(frame).sum()
        facts["cost of all trials"] = f"{spent:.1f} E, {hours:.2f} hours of trial time"
        facts["devices"] = "; ".join(sorted(frame["device"].dropna().unique()))
        facts["versions"] = " | ".join(sorted(frame["versions"].dropna().unique()))
        started = frame["started"].dropna()
        facts["trials started"] = f"{started.min()} to {started.max()}" if len(started) else ""
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items() if v)
    command = "superft run study.yaml --out ."
    dump = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True) if spec else "(no study.yaml)"
    return (
        f'<section><h2>What was run</h2><div class="wide"><table class="facts">{rows}</table></div>'
        f"<p>In this folder, <code>{command}</code> continues the study; with another <code>--out</code> it runs it "
        "again. "
        f"<code>superft report {escape(directory.resolve().name)}</code> in the folder above writes this page again. "
        "All numbers come from <code>trials.jsonl</code> (<code>trials.csv</code> is the same as a table), the front "
        "from <code>front.csv</code>; PNGs of the figures are in <code>figures/</code>.</p>"
        f"<details><summary>The full study.yaml</summary><pre>{escape(dump)}</pre></details></section>"
    )


def _read_spec(directory: Path) -> dict[str, Any]:
    path = directory / "study.yaml"
    if not path.exists():
        if (directory / "trials.jsonl").exists():
            return {}
        raise FileNotFoundError(f"{directory} is no study folder: it has neither study.yaml nor trials.jsonl")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"{path} must be a YAML mapping, got {type(spec).__name__}")
    return spec


def _write_figures(folder: Path, drawn: Mapping[str, Figure]) -> None:
    folder.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        write_atomically(folder / f"{name}.png", content.getvalue())
    for path in folder.glob("*.png"):
        # A figure that these rows no longer support would be read as theirs.
        if path.name.startswith(OWN_FIGURES) and path.stem not in drawn:
            path.unlink()


def _at(table: pd.DataFrame, dataset: str, model: str, attack: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["model"] == model) & (table["attack"] == attack)]


def _place_order(place: tuple[str, str, str]) -> tuple[str, str, bool, str]:
    dataset, model, attack = place
    return dataset, model, attack != ALL_ATTACKS, attack
