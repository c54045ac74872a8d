"""``superft report DIR``: report.html, figures, trials.csv and front.csv, computed from study.yaml and the ledger."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.offline
import yaml
from matplotlib.figure import Figure

from study import figures, front, page, parity
from study.comparison import cost_table, detection_table, honours, hypervolume_table, status_text, told
from study.figures import percent
from study.importance import Importance, importance
from study.ledger import Ledger, write_atomically
from study.markup import Table, escape, number, plain, plural, rate, table_html
from study.trigger_picture import TRIGGER_PREFIX
from trainables.metrics import der, rir
from trainables.victims import IMPLANTED_ACCURACY_DROP, IMPLANTED_ASR

# Plotly's tool bar offers to upload a chart to its maker's server unless told not to.
PLOTLY_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
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
    members = front.fronts(frame)
    write_atomically(directory / "front.csv", members.to_csv(index=False).encode())

    settings = [front.aggregate(frame)] + (
        [front.aggregate(frame, across_attacks=True)] if front.is_shared(frame) else []
    )
    table = pd.concat(settings, ignore_index=True) if len(settings) > 1 else settings[0]
    searched = front.candidates(frame)
    history = front.hypervolume_over_trials(frame)
    beside, costs = parity.parity(frame, _budget(spec)), parity.search_costs(frame)
    drawn: dict[str, Figure] = {}
    sections = []
    places = sorted(set(table[["dataset", "model", "attack"]].itertuples(index=False, name=None)), key=_place_order)
    for dataset, model, attack in places:
        parts = [_at(t, dataset, model, attack) for t in (table, members, searched, history, beside, costs, frame)]
        alone = len({place[:2] for place in places}) == 1
        title = attack if alone else f"{attack}, {dataset}, {model}"
        trigger = directory / "figures" / f"{TRIGGER_PREFIX}{attack}.png"
        section, images = _attack_section(str(title), trigger, *parts)
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


def before_after(settings: pd.DataFrame, members: pd.DataFrame) -> Table:
    """Table of one attack: before repair, baselines, published points, knee and picks; cells are texts.

    Args:
        settings: rows of ``front.aggregate`` of this attack.
        members: rows of ``front.fronts`` of this attack.
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


def _attack_section(
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
    heading = "all attacks (means)" if title == front.ALL_ATTACKS else title
    out = [f'<section id="{slug}"><h2>{escape(heading)}</h2>']
    drawn: dict[str, Figure] = {}
    table = before_after(settings, members)
    out.append(_in_short(settings, members))
    if trigger.is_file():
        out.append(_picture(trigger, f"The trigger of {heading}") + page.CAPTION_TRIGGER)
    picture = figures.front_picture(heading, settings, members)
    if picture.marks:
        drawn[f"front_{slug}"] = figures.front_png(picture)
        out.append("<h3>What each repair costs</h3>" + _plot(figures.front_plotly(picture), f"front-{slug}"))
        out.append(f'<p class="note">{_outside(picture.outside)}</p>' if picture.outside else "")
        out.append(page.CAPTION_FRONT)
    else:
        out.append(_why_empty(rows))
    if picture.marks and table:
        out.append("<h3>Before and after repair</h3>" + table_html(table) + page.CAPTION_TABLE)
    if picture.marks and (found := detection_table(rows, settings, members)):
        out.append("<h3>What the detectors found</h3>" + table_html(found) + page.CAPTION_DETECTION)
    if len(beside):
        heading_here = "The searches under equal rules" if len(beside) > 1 else "Hypervolume"
        out.append(f"<h3>{heading_here}</h3>" + table_html(hypervolume_table(beside)) + page.CAPTION_PARITY)
    if len(costs) and picture.marks:
        out.append("<h3>What tuning took</h3>" + table_html(cost_table(costs, settings)) + page.CAPTION_COSTS)
    if len(members):
        out.append(f"<h3>The front: {len(members)} {plural('setting', len(members))}</h3>")
        out.append(table_html(_front_table(members, settings)) + page.CAPTION_MEMBERS)
    if len(history):
        lines = figures.hypervolume_series(history, _published_hypervolume(searched))
        drawn[f"hypervolume_{slug}"] = figures.hypervolume_png(f"Hypervolume over trials: {heading}", lines)
        out.append("<h3>Was the search long enough?</h3>")
        out.append(_plot(figures.hypervolume_plotly(lines), f"hypervolume-{slug}") + page.CAPTION_HYPERVOLUME)
        importances = {str(defense): importance(group) for defense, group in searched.groupby("defense", sort=True)}
        out.append("<h3>Which settings mattered?</h3>")
        if any(one.shares for one in importances.values()):
            drawn[f"importance_{slug}"] = figures.importance_png(f"Importance of settings: {heading}", importances)
            out.append(_plot(figures.importance_plotly(importances), f"importance-{slug}") + page.CAPTION_IMPORTANCE)
        out += _importance_notes(importances)
    return "\n".join([*out, "</section>"]), drawn


def _why_empty(rows: pd.DataFrame) -> str:
    """The line of an attack that has nothing to draw."""
    absent = rows[front.true_status(rows) == "backdoor_not_implanted"]
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


def _budget(spec: Mapping[str, Any]) -> float | None:
    """E per cell that each search could spend, where the study had such a budget."""
    search = spec.get("search")
    budget = search.get("budget_epochs") if isinstance(search, dict) else None
    return float(budget) if isinstance(budget, int | float) else None


def _budgets_spent(frame: pd.DataFrame, budget: float | None) -> set[Any]:
    """GROUP keys of the searches that ended because they had spent their E."""
    if budget is None:
        return set()
    rows = frame.assign(cost=front.epochs_equivalent(frame).fillna(0.0))[frame["role"] == "search"]
    if front.is_shared(frame):
        rows = rows.assign(attack=front.ALL_ATTACKS, cell=rows["attack"].astype(str) + rows["seed"].astype(str))
    else:
        rows = rows.assign(cell=rows["seed"])
    groups = rows.groupby(list(front.GROUP), dropna=False)
    return {keys for keys, one in groups if one["cost"].sum() >= budget * one["cell"].nunique() * (1 - 1e-9)}


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
        chosen = own[own["picks"].str.split(";").map(lambda labels: front.pick_label(0.01) in labels)]
        text = ""
        for _, one in group[group["published"]].iterrows():
            text = f"at its published settings {_outcome(one)}"
        if len(chosen) and chosen.iloc[0]["published"]:
            text += ", and the search found nothing better that loses at most 1 point of accuracy"
        elif len(chosen):
            best = chosen.iloc[0]
            text += "; " if text else ""
            text += f"what the search picks if it may lose 1 point of accuracy: {_outcome(best)}"
            text += f" ({escape(front.settings_text(best))})" if len(searches) <= figures.FEW_SEARCHES else ""
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
    cells = {"settings": front.settings_text(one), "status": status_text(one)}
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
    names = sorted({name for _, one in members.iterrows() for name in front.settings_of(one)})
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
        values = front.settings_of(one)
        if alone:
            row |= {name: plain(values[name]) if name in values else "" for name in names}
        else:
            row["settings"] = front.settings_text(one)
        row["E"] = number(n["epochs_alone"], 2)
        row["seconds"] = number(one["wall_seconds"], 1)
        rows.append(row)
    return rows


def _published_hypervolume(searched: pd.DataFrame) -> dict[str, float]:
    rows = searched[searched["published"]]
    return {
        str(defense): front.hypervolume(
            front.on_front(group)[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float)
        )
        for defense, group in rows.groupby("defense", sort=True)
    }


# -- the page ----------------------------------------------------------------------------------------------------------


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
    body += [page.READING_AID, *sections, _troubles(frame, notes), _what_was_run(spec, directory, frame)]
    return page.TEMPLATE.format(
        title=escape(name),
        style=page.STYLE,
        plotly=plotly.offline.get_plotlyjs() if sections else "",
        body="\n".join(body),
    )


def _progress(spec: Mapping[str, Any], frame: pd.DataFrame, table: pd.DataFrame) -> str:
    if not len(frame):
        return '<p class="lead">No trial has finished yet. This page fills as the study runs: write it again with '
        "<code>superft report</code>.</p>"
    counts = frame["status"].value_counts()
    words = ", ".join(f"{counts[status]} {status}" for status in front.STATUSES if status in counts)
    ruined = int(front.collapsed(frame).sum())
    words += f"; {ruined} left a collapsed model" if ruined else ""
    text = f"{len(frame)} {plural('trial', len(frame))} finished ({words})."
    search = spec.get("search")
    asked = search.get("trials") if isinstance(search, dict) else None
    own = table[table["role"] == "search"]
    if isinstance(asked, int) and len(own):
        if (own["attack"] == front.ALL_ATTACKS).any():  # one search over all attacks: the rest are its parts
            own = own[own["attack"] == front.ALL_ATTACKS]
        done = {keys: group["trial"].nunique() for keys, group in own.groupby(list(front.GROUP), dropna=False)}
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
                "settings": front.settings_text(row),
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
        spent = front.epochs_equivalent(frame).sum()
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


def _plot(figure: Any, name: str) -> str:
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config=PLOTLY_CONFIG)
    return f'<div class="plot">{text}</div>'


def _at(table: pd.DataFrame, dataset: str, model: str, attack: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["model"] == model) & (table["attack"] == attack)]


def _place_order(place: tuple[str, str, str]) -> tuple[str, str, bool, str]:
    dataset, model, attack = place
    return dataset, model, attack != front.ALL_ATTACKS, attack


def _outside(n: int) -> str:
    lie = "trial, ruined or diverged, lies" if n == 1 else "trials, ruined or diverged, lie"
    return f"{n} {lie} left of the overview: the button <i>Everything</i> shows the whole plane."
