"""``superft report DIR``: report.html, figures, trials.csv and front.csv, computed from study.yaml and the ledger."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.offline
import yaml
from matplotlib.figure import Figure

from study import figures, front, page
from study.figures import interval, percent
from study.importance import importance
from study.ledger import Ledger, write_atomically
from trainables.metrics import der, rir

# Plotly's tool bar offers to upload a chart to its maker's server unless told not to.
PLOTLY_CONFIG = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
OWN_FIGURES = ("front_", "hypervolume_", "importance_")

Table = list[dict[str, str]]
_WORDY = ("model", "settings", "chosen as", "cause", "runs")  # columns that need room for words


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
    drawn: dict[str, Figure] = {}
    sections = []
    places = sorted(set(table[["dataset", "model", "attack"]].itertuples(index=False, name=None)), key=_place_order)
    for dataset, model, attack in places:
        parts = [_at(t, dataset, model, attack) for t in (table, members, searched, history)]
        alone = len({place[:2] for place in places}) == 1
        title = attack if alone else f"{attack}, {dataset}, {model}"
        section, images = _attack_section(str(title), *parts)
        drawn |= images
        sections.append(section)
    _write_figures(directory / "figures", drawn)

    notes = list(ledger.damaged)
    if (aside := directory / "trials.jsonl.damaged").exists():
        lines = aside.read_bytes().count(b"\n")
        notes.append(f"{lines} damaged or repeated {_plural('line', lines)} kept aside in {aside.name}")
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
    measured = settings.dropna(subset=["asr_report"])
    if len(measured):
        first = measured.iloc[0]
        before = {"model": "before repair", "status": "–", "settings": ""}
        before["ASR"] = _rate(first["asr_before_report"], first["n_triggered_report"])
        before["clean accuracy"] = _rate(first["clean_accuracy_before_report"], first["n_clean_report"])
        before["RA"] = percent(first["robust_accuracy_before"])
        rows.append(before | {"DER": "0.500", "RIR": "0.500", "ASR-base": percent(first["asr_base"])})
    for _, one in settings[settings["role"] == "baseline"].sort_values("defense").iterrows():
        rows.append({"model": f"{one['defense']} (baseline)", **_measured(one)})
    for defense, group in settings[settings["role"] == "search"].groupby("defense", sort=True):
        for _, one in group[group["published"]].iterrows():
            rows.append({"model": f"{defense}, published settings", **_measured(one)})
        for _, member in members[members["defense"] == defense].iterrows():
            if names := _honours(member):
                one = group[group["trial"] == member["trial"]].iloc[0]
                rows.append({"model": f"{defense}, found: {names}", **_measured(one)})
    return rows


def _attack_section(
    title: str, settings: pd.DataFrame, members: pd.DataFrame, searched: pd.DataFrame, history: pd.DataFrame
) -> tuple[str, dict[str, Figure]]:
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", title)
    heading = "all attacks (means)" if title == front.ALL_ATTACKS else title
    out = [f'<section id="{slug}"><h2>{_e(heading)}</h2>']
    drawn: dict[str, Figure] = {}
    table = before_after(settings, members)
    out.append(_in_short(settings, members))
    picture = figures.front_picture(heading, settings, members)
    if picture.marks:
        drawn[f"front_{slug}"] = figures.front_png(picture)
        out.append("<h3>What each repair costs</h3>" + _plot(figures.front_plotly(picture), f"front-{slug}"))
        out.append(f'<p class="note">{_outside(picture.outside)}</p>' if picture.outside else "")
        out.append(page.CAPTION_FRONT)
    else:
        absent = len(settings) and (settings["status"] == "backdoor_not_implanted").all()
        why = "The backdoor was not implanted, so there is nothing to repair" if absent else "No trial has a result yet"
        out.append(f"<p>{why}; see <i>What went wrong</i> below.</p>")
    if picture.marks and table:
        out.append("<h3>Before and after repair</h3>" + _table(table) + page.CAPTION_TABLE)
    if len(members):
        out.append(f"<h3>The front: {len(members)} {_plural('setting', len(members))}</h3>")
        out.append(_table(_front_table(members, settings)) + page.CAPTION_MEMBERS)
    if len(history):
        lines = figures.hypervolume_series(history, _published_hypervolume(searched))
        drawn[f"hypervolume_{slug}"] = figures.hypervolume_png(f"Hypervolume over trials: {heading}", lines)
        out.append("<h3>Was the search long enough?</h3>")
        out.append(_plot(figures.hypervolume_plotly(lines), f"hypervolume-{slug}") + page.CAPTION_HYPERVOLUME)
        found = {str(defense): importance(group) for defense, group in searched.groupby("defense", sort=True)}
        out.append("<h3>Which settings mattered?</h3>")
        if any(one.shares for one in found.values()):
            drawn[f"importance_{slug}"] = figures.importance_png(f"Importance of settings: {heading}", found)
            out.append(_plot(figures.importance_plotly(found), f"importance-{slug}") + page.CAPTION_IMPORTANCE)
        out += [
            f'<p class="note">{_e(name)}: {_e(" ".join(one.notes))}</p>' for name, one in found.items() if one.notes
        ]
    return "\n".join([*out, "</section>"]), drawn


def _in_short(settings: pd.DataFrame, members: pd.DataFrame) -> str:
    """What came out, in sentences; every number from the report half."""
    measured = settings.dropna(subset=["asr_report"])
    if not len(measured):
        return ""
    first = measured.iloc[0]
    says = [
        f"<b>Before repair</b> {percent(first['asr_before_report'])} of triggered images go to the attacker's class, "
        f"and {percent(first['clean_accuracy_before_report'])} of clean images are classified right."
    ]
    for _, one in measured[(measured["role"] == "baseline") & (measured["defense"] != "none")].iterrows():
        says.append(f"<b>{_e(one['defense'])}</b> (baseline): {_outcome(one)}.")
    for defense, group in measured[measured["role"] == "search"].groupby("defense", sort=True):
        for _, one in group[group["published"]].iterrows():
            says.append(f"<b>{_e(defense)} at its published settings</b>: {_outcome(one)}.")
        own = members[members["defense"] == defense]
        chosen = own[own["picks"].str.split(";").map(lambda labels: front.pick_label(0.01) in labels)]
        if len(chosen):
            best = chosen.iloc[0]
            says.append(
                f"<b>{_e(defense)}, what the search picks if it may lose 1 point of accuracy</b>: {_outcome(best)} "
                f"({_e(front.settings_text(best))})."
            )
        elif len(own):
            says.append(f"<b>{_e(defense)}</b>: no setting lost at most 1 point of accuracy in the search.")
    return "<ul>" + "".join(f"<li>{sentence}</li>" for sentence in says) + "</ul>"


def _outcome(one: pd.Series[Any]) -> str:
    if one.get("status") == "diverged":
        return "training diverged"
    return f"ASR {percent(one['asr_report'])} at clean accuracy {percent(one['clean_accuracy_report'])}"


def _measured(one: pd.Series[Any]) -> dict[str, str]:
    """Cells of a repaired model: report half, with 95 % Wilson intervals of the pooled test images."""
    cells = {"settings": front.settings_text(one), "status": str(one["status"])}
    if pd.isna(one["asr_report"]):
        return cells
    asr, accuracy = one["asr_report"], one["clean_accuracy_report"]
    before, accuracy_before = one["asr_before_report"], one["clean_accuracy_before_report"]
    cells["ASR"] = _rate(asr, one["n_triggered_report"])
    cells["clean accuracy"] = _rate(accuracy, one["n_clean_report"])
    cells["RA"] = _rate(one["robust_accuracy_report"], one["n_triggered_report"])
    cells["DER"] = _number(der(before, asr, accuracy_before, accuracy), 3)
    ra = rir(one["robust_accuracy_before"], one["robust_accuracy_report"], accuracy_before, accuracy)
    cells["RIR"] = _number(ra, 3)
    cells["ASR-base"] = percent(one["asr_base"])
    cells["false target rate"] = percent(one["false_target_rate"])
    cells["E"] = _number(one["epochs_equivalent"], 2)
    cells["seconds"] = _number(one["wall_seconds"], 1)
    if one["cells"] > 1:
        span = f"{percent(one['asr_report_min'])} to {percent(one['asr_report_max'])}"
        cells["runs"] = f"{one['cells']} (ASR {span})"
    return cells


def _front_table(members: pd.DataFrame, settings: pd.DataFrame) -> Table:
    counts = settings[settings["role"] == "search"].set_index(["defense", "trial"])
    names = sorted({name for _, one in members.iterrows() for name in front.settings_of(one)})
    rows: Table = []
    for _, one in members.iterrows():
        n = counts.loc[(one["defense"], one["trial"])]
        row = {"defense": str(one["defense"]), "rank": str(one["rank"]), "trial": str(one["trial"])}
        row["chosen as"] = (_honours(one) + (", published" if one["published"] else "")).removeprefix(", ")
        row["ASR"] = _rate(one["asr_report"], n["n_triggered_report"])
        row["clean accuracy"] = _rate(one["clean_accuracy_report"], n["n_clean_report"])
        row["search half: ASR"] = percent(one["asr_search"])
        row["search half: accuracy"] = percent(one["clean_accuracy_search"])
        values = front.settings_of(one)
        row |= {name: _plain(values[name]) if name in values else "" for name in names}
        row["E"] = _number(one["epochs_equivalent"], 2)
        row["seconds"] = _number(one["wall_seconds"], 1)
        rows.append(row)
    return rows


def _honours(member: pd.Series[Any]) -> str:
    words = ["knee"] if member["is_knee"] else []
    drops = [pick.removeprefix("drop_") for pick in str(member["picks"]).split(";") if pick.startswith("drop_")]
    if drops:
        words.append(f"least ASR at ≤ {', '.join(drops)} {_plural('point', 1 if drops == ['1'] else 2)} lost")
    if "max_der" in str(member["picks"]).split(";"):
        words.append("max DER")
    return ", ".join(words)


def _published_hypervolume(searched: pd.DataFrame) -> dict[str, float]:
    rows = searched[searched["published"]]
    return {
        str(defense): front.hypervolume(group[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float))
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
    body = [f"<h1>{_e(name)}: what does removing the backdoor cost?</h1>", _progress(spec, frame, table)]
    links = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', "".join(sections))
    if links:
        body.append("<nav>" + " · ".join(f'<a href="#{slug}">{title}</a>' for slug, title in links) + "</nav>")
    body += [page.READING_AID, *sections, _troubles(frame, notes), _what_was_run(spec, directory, frame)]
    return page.TEMPLATE.format(
        title=_e(name), style=page.STYLE, plotly=plotly.offline.get_plotlyjs() if sections else "", body="\n".join(body)
    )


def _progress(spec: Mapping[str, Any], frame: pd.DataFrame, table: pd.DataFrame) -> str:
    if not len(frame):
        return '<p class="lead">No trial has finished yet. This page fills as the study runs: write it again with '
        "<code>superft report</code>.</p>"
    counts = frame["status"].value_counts()
    words = ", ".join(f"{counts[status]} {status}" for status in front.STATUSES if status in counts)
    text = f"{len(frame)} {_plural('trial', len(frame))} finished ({words})."
    search = spec.get("search")
    asked = search.get("trials") if isinstance(search, dict) else None
    own = table[table["role"] == "search"]
    if isinstance(asked, int) and len(own):
        if (own["attack"] == front.ALL_ATTACKS).any():  # one search over all attacks: the rest are its parts
            own = own[own["attack"] == front.ALL_ATTACKS]
        done = {keys: group["trial"].nunique() for keys, group in own.groupby(list(front.GROUP), dropna=False)}
        short = [f"{attack} / {defense}: {n} of {asked}" for (*_, attack, defense), n in done.items() if n < asked]
        if short:
            text += f" <b>The study is not finished</b> ({_e('; '.join(short))} settings)."
    return f'<p class="lead">{text}</p>'


def _troubles(frame: pd.DataFrame, notes: Sequence[str]) -> str:
    out = ["<section><h2>What went wrong</h2>"]
    bad = frame[frame["status"].isin(["failed", "diverged", "abstained"])]
    absent = frame[frame["status"] == "backdoor_not_implanted"]
    if len(bad):
        out.append(
            "<p>A failed trial is in no figure; a diverged one counts as the worst point (ASR 100 %, accuracy 0 %).</p>"
        )
        rows = [
            {
                "status": str(row["status"]),
                "trial": str(row["trial"]),
                "attack": str(row["attack"]),
                "defense": str(row["defense"]),
                "seed": str(row["seed"]),
                "settings": front.settings_text(row),
                "cause": str(row["error"] or row["flags"] or "not recorded"),
            }
            for row in bad.sort_values("status", kind="stable").to_dict("records")
        ]
        out.append(_table(rows))
    if len(absent):
        victims = absent.drop_duplicates(["dataset", "model", "attack", "seed"]).to_dict("records")
        out.append("<p>In these models no backdoor took hold, so nothing can be said about removing it:</p>")
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
        out.append(_table(rows))
    out += [f"<p>{_e(note)}</p>" for note in notes]
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
    rows = "".join(f"<tr><th>{_e(k)}</th><td>{_e(v)}</td></tr>" for k, v in facts.items() if v)
    command = "superft run study.yaml --out ."
    dump = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True) if spec else "(no study.yaml)"
    return (
        f'<section><h2>What was run</h2><div class="wide"><table class="facts">{rows}</table></div>'
        f"<p>In this folder, <code>{command}</code> continues the study; with another <code>--out</code> it runs it "
        "again. "
        f"<code>superft report {_e(directory.resolve().name)}</code> in the folder above writes this page again. All "
        "numbers come from <code>trials.jsonl</code> (<code>trials.csv</code> is the same as a table), the front from "
        "<code>front.csv</code>; PNGs of the figures are in <code>figures/</code>.</p>"
        f"<details><summary>The full study.yaml</summary><pre>{_e(dump)}</pre></details></section>"
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


def _table(rows: Table) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in columns if any(row.get(name) for row in rows)]
    head = "".join(f"<th>{_e(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = []
        for name in columns:
            wide = ' class="words"' if name in _WORDY else ""
            text = re.sub(r"(\[[\d., ]+\])", r'<span class="ci">\1</span>', _e(row.get(name, "")))
            cells.append(f"<td{wide}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _rate(rate: Any, n: Any) -> str:
    ends = interval(rate, n)
    return percent(rate) + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def _number(value: Any, digits: int) -> str:
    return "–" if pd.isna(value) else f"{float(value):.{digits}f}"


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _at(table: pd.DataFrame, dataset: str, model: str, attack: str) -> pd.DataFrame:
    return table[(table["dataset"] == dataset) & (table["model"] == model) & (table["attack"] == attack)]


def _place_order(place: tuple[str, str, str]) -> tuple[str, str, bool, str]:
    dataset, model, attack = place
    return dataset, model, attack != front.ALL_ATTACKS, attack


def _outside(n: int) -> str:
    lie = "trial, ruined or diverged, lies" if n == 1 else "trials, ruined or diverged, lie"
    return f"{n} {lie} left of the overview: the button <i>Everything</i> shows the whole plane."


def _plural(word: str, n: int) -> str:
    return word if n == 1 else word + "s"


def _e(text: Any) -> str:
    return html.escape(str(text))
