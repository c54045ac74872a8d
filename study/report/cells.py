"""Tables of report.html that set defenses beside each other: hypervolumes, what searches took, what detectors found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from study.record.columns import as_list
from study.record.words import percent
from study.report.html import Table, number, plural, rate
from study.report.targets import target_text
from study.results.in_words import movement_text
from study.results.outcomes import OUTCOMES
from study.results.pareto import hypervolume
from study.spec.over_attacks import MEAN, WORST_CASE, parse_rule

# Row of the ledger -> heading, for what `trainables.evaluation.detection` measures.
DETECTION = {
    "detection_removed": "removed",
    "detection_tpr": "TPR",
    "detection_ceiling_share": "most TPR at this share",
    "detection_ceiling_classes": "most TPR at these shares of the classes",
    "detection_fpr": "FPR",
    "detection_precision": "precision",
    "detection_removed_target": "removed of the target class",
    "detection_auroc_target": "AUROC within the target class",
    "detection_auprc_target": "AUPRC within the target class",
    "detection_auroc": "AUROC over all classes",
    "detection_auprc": "AUPRC over all classes",
}
PUBLISHED = ("ASR", "clean accuracy", "E", "status")
FLAGS, TARGET, WRONG, ANOMALY = "flagged_classes", "target_flagged", "false_classes", "note.anomaly_indices"


def told(settings: pd.DataFrame, members: pd.DataFrame) -> Iterator[tuple[str, pd.Series[Any]]]:
    """The settings that a table names, and how: baselines, controls, per search what it began with and the picked ones.

    Args:
        settings: rows of ``settings.aggregate`` of one attack.
        members: rows of ``fronts.fronts`` of it.
    """
    for _, one in settings[settings["role"] == "baseline"].sort_values("defense_label").iterrows():
        yield f"{one['defense_label']} (baseline)", one
    for _, one in settings[settings["role"] == "control"].sort_values("defense_label").iterrows():
        yield f"{one['defense_label']} (clean control)", one
    for defense, group in settings[settings["role"] == "search"].groupby("defense_label", sort=True):
        chosen = {str(one["trial"]): honours(one) for _, one in members[members["defense_label"] == defense].iterrows()}
        for _, one in group[group["published"] | group["start"].notna()].iterrows():
            names = chosen.pop(str(one["trial"]), "")
            what = "published setting" if one["published"] else start_of(one)
            yield f"{defense}, {what}{f'; found: {names}' if names else ''}", one
        for trial, names in chosen.items():
            if names:
                yield f"{defense}, found: {names}", group[group["trial"] == trial].iloc[0]


def start_of(one: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """``begun with NAME`` of a further point that the search space names to begin with; else nothing."""
    return "" if pd.isna(one["start"]) else f"begun with {one['start']}"


def honours(member: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """What a setting of the front was chosen as: knee, least ASR at some loss, max DER."""
    words = ["knee"] if member["is_knee"] else []
    labels = str(member["picks"]).split(";")
    drops = [pick.removeprefix("drop_") for pick in labels if pick.startswith("drop_")]
    if drops:
        words.append(f"least ASR at ≤ {', '.join(drops)} {plural('point', 1 if drops == ['1'] else 2)} lost")
    if "max_der" in labels:
        words.append("max DER")
    return ", ".join(words)


def status_text(one: pd.Series[Any]) -> str:
    """Status of a setting, and whether its model collapsed or its repair hardly moved."""
    return ", ".join(filter(None, (str(one["status"]), "collapsed" if one["collapsed"] else "", movement_text(one))))


def hypervolume_table(found: pd.DataFrame) -> Table:
    """Rows of ``equal_rules.parity`` of one attack as texts, best first; one search alone has one hypervolume."""
    several = len(found) > 1
    order = "hypervolume_compute" if several else "hypervolume_all"
    rows: Table = []
    for _, one in found.sort_values([order, "box_all"], ascending=False, kind="stable").iterrows():
        row = {"defense": str(one["defense_label"])} | ({"models": str(one["models"])} if one["models"] else {})
        rules = {"all": "all settings"}
        if several:
            rules = {"compute": f"first {number(one['equal_epochs'], 1)} E", **rules}
            if not pd.isna(one["equal_trials"]):
                n = int(one["equal_trials"])
                rules = {"trials": f"first {n} {plural('setting', n)}", **rules}
        for rule, name in rules.items():
            if pd.isna(one[f"settings_{rule}"]):
                row |= dict.fromkeys((f"{name}: hypervolume", f"{name}: corner", f"{name}: took"), "–")
                continue
            row[f"{name}: hypervolume"] = _estimate(one, f"hypervolume_{rule}")
            row[f"{name}: corner"] = _estimate(one, f"box_{rule}")
            count = int(one[f"settings_{rule}"])
            spent = number(one[f"epochs_{rule}"], 1)
            row[f"{name}: took"] = f"{count} {plural('setting', count)}, {spent} E"
        rows.append(row)
    return rows


def repeats_table(repeated: pd.DataFrame) -> Table:
    """Rows of ``repeats.repeated_searches`` as texts."""
    rows: Table = []
    for _, one in repeated.iterrows():
        row = {"defense": str(one["defense_label"]), "searches": str(one["searches"])}
        least, most = int(one["settings_least"]), int(one["settings_most"])
        row["settings each"] = str(most) if least == most else f"{least} to {most}"
        for key, name in (("hypervolume", "hypervolume"), ("box", "corner")):
            row[name] = _estimate(one, key)
            row[f"{name}: first search"] = number(one[f"{key}_first"], 3)
            row[f"{name}: least to most"] = f"{one[f'{key}_least']:.3f} to {one[f'{key}_most']:.3f}"
        rows.append(row)
    return rows


def confirmed_table(confirmed: pd.DataFrame, curse: pd.DataFrame) -> Table:
    """Rows of ``confirmed.confirmed_settings`` as texts, after those of each defense its ``winners_curse``."""
    rows: Table = []
    for defense, group in confirmed.groupby("defense_label", sort=True):
        for _, one in group.iterrows():
            row = {"defense": str(defense), "setting": str(one["trial"]).rpartition("/")[2], "chosen as": honours(one)}
            for key, name in (("asr", "ASR"), ("clean_accuracy", "accuracy")):
                row[f"{name}: searched"] = percent(one[f"{key}_report"])
                row[f"{name}: confirmed"] = percent(one[f"{key}_confirmed"])
            counted, meant, ruined = int(one["models_counted"]), int(one["models"]), int(one["ruined"])
            models = str(meant) if counted == meant else f"{counted} of {meant}"
            rows.append({**row, "fresh models": models + (f" ({ruined} collapsed or diverged)" if ruined else "")})
        for _, one in curse[curse["defense_label"] == defense].iterrows():
            row = {"defense": str(defense), "setting": "confirmed less searched", "chosen as": "mean"}
            for key, name in (("asr", "ASR"), ("clean_accuracy", "accuracy")):
                low, high = 100 * one[f"{key}_low"], 100 * one[f"{key}_high"]
                interval = f" [{low:+.1f}, {high:+.1f}]" if one["seeds"] > 1 else ""
                row |= {f"{name}: searched": "", f"{name}: confirmed": f"{100 * one[key]:+.1f}{interval}"}
            rows.append({**row, "fresh models": f"{int(one['seeds'])} {plural('seed', int(one['seeds']))}"})
    return rows


def rules_table(by_rule: pd.DataFrame) -> Table:
    """Rows of ``fronts.fronts_by_rule`` as texts: each front, and what it comes to by means and in the worst case."""
    rows: Table = []
    for (defense, rule), group in by_rule.groupby(["defense_label", "rule"], sort=True):
        row = {"defense": str(defense), "front by": parse_rule(str(rule)).in_words, "settings": str(len(group))}
        for judged in (MEAN, WORST_CASE):
            points = group[[f"asr_report_{judged}", f"clean_accuracy_report_{judged}"]].to_numpy(dtype=float)
            row[f"hypervolume, {judged.in_words}"] = number(hypervolume(points), 4)
        rows.append(row)
    return rows


def cost_table(costs: pd.DataFrame, settings: pd.DataFrame) -> Table:
    """Rows of ``equal_rules.search_costs`` of one attack as texts, with the published setting of each defense."""
    rows: Table = []
    published = settings[(settings["role"] == "search") & settings["published"]].set_index("defense_label")
    for _, one in costs.iterrows():
        row = {"defense": str(one["defense_label"])} | {f"published: {name}": "" for name in PUBLISHED}
        if one["defense_label"] in published.index:
            point = published.loc[one["defense_label"]]
            point = point.iloc[0] if isinstance(point, pd.DataFrame) else point
            row["published: ASR"] = rate(point, "asr")
            row["published: clean accuracy"] = rate(point, "clean_accuracy")
            row["published: E"] = number(point["epochs_alone"], 2)
            row["published: status"] = status_text(point)
        row["trials"] = str(one["trials"])
        for name in (*OUTCOMES, "no_backdoor"):
            row[name.replace("_", " ")] = str(one[name]) if one[name] else ""
        row["tuned cost: E"] = number(one["epochs"], 1)
        row["found ready: E"] = number(one["epochs_found"], 1) if one["epochs_found"] else ""
        for name, seconds in (("trial-seconds", one["seconds"]), ("GPU-seconds", one["gpu_seconds"])):
            row[f"tuned cost: {name}"] = number(seconds, 0 if seconds >= 10 else 1) if seconds else ""
        rows.append(row)
    return rows


def detection_table(frame: pd.DataFrame, settings: pd.DataFrame, members: pd.DataFrame) -> Table:
    """What detectors found, for the settings that the other tables name; empty where nothing detects.

    Args:
        frame: ledger rows of one attack (for means over attacks there is no such table).
    """
    present = [name for name in (*DETECTION, FLAGS) if name in frame]
    frame = frame[frame[present].notna().any(axis=1)] if present else frame.iloc[:0]
    rows: Table = []
    for name, one in told(settings, members):
        own = frame[(frame["trial"] == one["trial"]) & (frame["defense_label"] == one["defense_label"])]
        if len(own):
            rows.append({"model": name, **detected(own)})
    for defense, group in frame[frame["role"] == "search"].groupby("defense_label", sort=True):
        if len(group) > 1:
            rows.append({"model": f"{defense}, all {len(group)} trials: least to most", **detected(group, spread=True)})
    return rows


def detected(rows: pd.DataFrame, spread: bool = False) -> dict[str, str]:
    """Cells of some trials (of one setting: its seeds): means, or the range that they span."""
    cells = dict.fromkeys(DETECTION.values(), "")  # in this order, whichever detector comes first
    for column, heading in DETECTION.items():
        values = rows[column].dropna().astype("float64") if column in rows else rows["asr"].iloc[:0]
        if not len(values):
            continue
        low, high = (_detection_text(column, value) for value in (values.min(), values.max()))
        mean = _detection_text(column, values.mean())
        cells[heading] = mean if not spread else low if low == high else f"{low.removesuffix(' %')} to {high}"
    judged = rows[rows[FLAGS].notna()] if FLAGS in rows else rows.iloc[:0]
    if len(judged):
        hits = judged[TARGET].dropna() if TARGET in judged else judged.iloc[:0]
        if spread or len(judged) > 1:
            cells["flagged classes"] = (
                f"{int((judged[FLAGS].map(as_list).map(len) > 0).sum())} of {len(judged)} runs flag"
            )
        else:
            cells["flagged classes"] = _flags_text(judged.iloc[0])
        if len(hits):
            yes = sum(map(bool, hits))
            cells["target found"] = ("yes" if yes else "no") if len(hits) == 1 else f"{yes} of {len(hits)}"
        if WRONG in judged and len(wrong := judged[WRONG].dropna()):
            least, most = int(wrong.min()), int(wrong.max())
            cells["false classes"] = str(least) if least == most else f"{least} to {most}"
    return cells


def _flags_text(row: pd.Series[Any]) -> str:
    """Flagged classes of one run, each with its anomaly index where the method has one."""
    flagged = [int(text) for text in as_list(row[FLAGS])]
    indices = [float(text) for text in as_list(row.get(ANOMALY))]
    target = target_text(row.to_frame().T)  # "0 (airplane)", where the row knows both
    names = {int(target.partition(" (")[0]): target.partition(" (")[2][:-1]} if re.match(r"\d+ \(", target) else {}
    if flagged:
        remarks = {label: [names[label]] if label in names else [] for label in flagged}
        for label in flagged if indices else ():
            remarks[label].append(f"index {indices[label]:.1f}")
        return ", ".join(f"{label} ({'; '.join(said)})" if said else str(label) for label, said in remarks.items())
    if not indices:
        return "none"
    return f"none (largest index {max(indices):.1f})"


def _detection_text(column: str, value: float) -> str:
    return f"{value:.3f}" if column.startswith(("detection_auroc", "detection_auprc")) else percent(value)


def _estimate(one: pd.Series[Any], key: str) -> str:
    value, low, high = (one[f"{key}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return "–"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low < high else "")
