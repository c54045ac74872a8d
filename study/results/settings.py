"""Pareto front, hypervolume, knee and picks of a study: pure functions of ledger rows (``ledger.to_frame``).

A point is (ASR, clean accuracy), both fractions in [0, 1]; ASR is minimised, clean accuracy maximised. A *setting* is
what Optuna proposed once; it may have been scored on several cells (seeds, attacks), whose metrics are averaged. Leak
rule: what is on the front, the knee and the picks are chosen on the search half of the test set; the values to read
are those of the report half, which no choice has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study.plan.jobs import CONFIRM
from study.record.columns import DROPPED_BY, PARAM
from study.record.cost import epochs
from study.results.pareto import PICKS, RunningFront, hypervolume, hypervolume_box, knee, non_dominated_indices, picks
from study.results.scores import NOT_IMPLANTED, STATUSES, models_in_words, victim_of, without_backdoor
from study.spec.over_attacks import MEAN, WORST_CASE, OverAttacks, parse_rule
from trainables.evaluation.metrics import der

# What a search, or a baseline, is called within a study; the label is the defense's name there.
GROUP = ("combination", "dataset", "model", "attack", "defense_label")
PLACE = GROUP[:-1]  # what a section of the report is about
ALL_ATTACKS = "all"
REPEAT = "repeat"  # role of searches that were made once more
BESIDE = (REPEAT, CONFIRM)  # roles of what stands beside the study itself
METRICS = (
    *tuple(
        f"{metric}{half}"
        for half in ("", "_search", "_report")
        for metric in ("asr", "clean_accuracy", "robust_accuracy")
    ),
    "asr_before",
    "clean_accuracy_before",
    "robust_accuracy_before",
    "asr_before_report",
    "clean_accuracy_before_report",
    "robust_accuracy_before_report",
)
_EXTRA_MEANS = ("asr_base", "false_target_rate", "asr_before_search", "clean_accuracy_before_search")
_SPREAD = ("asr_report", "clean_accuracy_report")
_COSTS = ("charged_epochs", "epochs_alone", "wall_seconds", "steps")
_COUNTS = {"asr": "n_triggered", "clean_accuracy": "n_clean"}
_POOLED = ("n_clean", "n_triggered", "n_clean_report", "n_triggered_report")
_FRONT_VALUES = (
    *("asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report", "robust_accuracy_report"),
    *("asr_before_report", "clean_accuracy_before_report", "charged_epochs", "wall_seconds", "cells", "published"),
    *("start", "models", "models_counted", "status", "collapsed", "aggregate"),
)
FRONT_COLUMNS = (*GROUP, "defense", "rank", "trial", *_FRONT_VALUES, "der_report", "is_knee", "picks")


def non_dominated(frame: pd.DataFrame, asr: str = "asr_search", ca: str = "clean_accuracy_search") -> pd.DataFrame:
    """Rows on the front, ASR ascending; rows without both values are no candidates, of equal rows the first stays."""
    candidates = frame.dropna(subset=[asr, ca])
    return candidates.iloc[non_dominated_indices(candidates[[asr, ca]].to_numpy(dtype=float))]


def on_front(settings: pd.DataFrame) -> pd.DataFrame:
    """Settings (of one group) on the front of the search half, ASR ascending.

    A collapsed model is no candidate: with ASR 0 by accident it would be one end of every front.
    """
    return non_dominated(settings[~settings["collapsed"].astype(bool)])


def at(table: pd.DataFrame, place: Sequence[Any]) -> pd.DataFrame:
    """The rows of any table here that are of one place: combination, data set, model and attack, see PLACE.

    Without the attack: those of all attacks there.
    """
    same = pd.Series(True, table.index)
    for key, value in zip(PLACE, place, strict=False):
        same &= table[key] == value
    return table[same]


def charged_epochs(frame: pd.DataFrame, alone: bool = False) -> pd.Series[float]:
    """Cost of each row in E, see `study.record.cost`; missing where the size of the training set is.

    What a trial found ready made by an earlier one (features, a retrained model) is charged once to every search, see
    `study.record.cost.Bill`. With ``alone`` it counts all the same: the cost of that setting without any other.
    """
    size = frame["train_size"].astype("float64")

    def samples(name: str) -> pd.Series[float]:
        # Tables written before the column was there, and defenses that never ask for it, count none.
        found = frame[name].astype("float64") if name in frame else pd.Series(0.0, frame.index)
        return found if name in ("forward_samples", "backward_samples") else found.fillna(0.0)

    forward, backward, inputs = (
        samples(f"{name}_samples") + (samples(f"reused_{name}_samples") if alone else 0.0)
        for name in ("forward", "backward", "input_backward")
    )
    cost: pd.Series[float] = epochs(forward, backward, inputs, size.where(size > 0))
    if not alone and "charged_epochs" in frame:
        cost = frame["charged_epochs"].astype("float64").where(cost.notna()).fillna(cost)
    return cost


def true_status(frame: pd.DataFrame) -> pd.Series[str]:
    """Status of each row, where ``backdoor_not_implanted`` holds for all that did not fail on such a victim.

    A trial that abstained or diverged there says only that; the others on the same victim tell.
    """
    without = holds_no_backdoor(frame)
    status: pd.Series[str] = frame["status"].mask(without & (frame["status"] != "failed"), NOT_IMPLANTED)
    return status


def cell_names(rows: pd.DataFrame, parts: Sequence[str] = ("attack", "seed", "defense_seed")) -> pd.Series[str]:
    """What a setting was scored on in each row, as one text."""
    names = rows[parts[0]].astype(str)
    for name in parts[1:]:
        names = names + "/" + rows[name].astype(str)
    return names


def holds_no_backdoor(frame: pd.DataFrame) -> pd.Series[bool]:
    """Whether the victim of each row holds no backdoor, by `scores.without_backdoor`."""
    names = ["dataset", "model", "attack", "seed", "combination", "status"]
    rows = [dict(zip(names, values, strict=True)) for values in frame[names].itertuples(index=False, name=None)]
    absent = without_backdoor(rows)
    without = pd.Series([victim_of(row) in absent for row in rows], index=frame.index)
    return without.astype(bool)


def collapsed(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows whose model predicts next to nothing right any more: their ASR is 0 or 1 by accident."""
    return frame["collapsed"].eq(True).fillna(False).astype(bool)


def without_beside(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study itself, without those of repeated searches and of settings on fresh seeds."""
    return frame[~frame["role"].isin(BESIDE)]


def of_repeat(frame: pd.DataFrame, number: int) -> pd.DataFrame:
    """The rows of the ``number``-th repetition of every search, as if they were the study's own; 0: the study's own."""
    if number == 0:
        return without_beside(frame)
    return frame[frame["role"].eq(REPEAT) & frame["repeat"].eq(number)].assign(role="search")


def rule_of(frame: pd.DataFrame) -> OverAttacks:
    """How the study that these rows are of takes attacks together (``search.aggregate``)."""
    named = frame["aggregate"].dropna()
    return parse_rule(str(named.iloc[0]) if len(named) else None)


def aggregate(frame: pd.DataFrame, across_attacks: bool = False, rule: OverAttacks | None = None) -> pd.DataFrame:
    """One row per setting: means over its cells, in the order in which the settings were finished.

    Cells are its pairs of seed and defense seed, with ``across_attacks`` those on every attack, under the attack name
    ``all``: there rates are taken together by ``rule`` (by default the study's), after the repair and before it, and
    the counts of test images are of the attacks that count. ``aggregate`` names the rule. Repeated searches and
    settings on fresh seeds are left out. Cells whose backdoor was not implanted measure nothing and are left out, also
    those of trials that abstained or diverged there. ``complete`` is true for a setting that has a result on every cell
    that its rivals in the group were scored on: a mean over fewer is no fair rival, so a setting with a failed or still
    missing cell never enters a front, nor one that was ``dropped`` in a race, on whatever attack. ``status`` is the
    worst of those cells, ``collapsed`` whether any of them did; ``cells`` counts those in the mean, ``models_counted``
    their victims, ``models`` the victims that the setting was meant for (also those without a backdoor, which may have
    no row); ``unmoved`` counts the cells in the mean whose repair moved nothing; ``*_min`` and ``*_max`` span the
    cells; counts of test images are pooled; costs are means per cell.
    """
    params = [name for name in frame.columns if name.startswith(PARAM)]
    rows = without_beside(frame).reset_index(drop=True).copy()
    rule = (rule or rule_of(rows)) if across_attacks else MEAN
    rows["row"] = np.arange(len(rows))
    rows["role"] = rows["role"].fillna("search")
    rows["cell"], rows["of_victim"] = cell_names(rows), cell_names(rows, ("attack", "seed"))
    rows["charged_epochs"], rows["epochs_alone"] = charged_epochs(rows), charged_epochs(rows, alone=True)
    rows["status"], rows["without"] = true_status(rows), holds_no_backdoor(rows)
    for metric, count in (("asr", "n_triggered"), ("clean_accuracy", "n_clean")):
        rows[f"{metric}_before_search"] = _other_half(rows, f"{metric}_before", count)
    means = [*METRICS, *_EXTRA_MEANS, *_COSTS]
    rows[[*means, *_POOLED]] = rows[[*means, *_POOLED]].astype("float64")
    scored = ~rows["status"].isin(["failed", NOT_IMPLANTED])
    rows.loc[~scored, [*means, *_POOLED]] = np.nan
    rows["of_attack"] = rows["attack"]
    if across_attacks:
        single = rows["role"] != "search"  # one settings point per defense, but a trial of its own per attack
        rows.loc[single, "trial"] = (
            ALL_ATTACKS + "/" + rows.loc[single, "defense_label"] + "/" + rows.loc[single, "role"]
        )
        rows["attack"] = ALL_ATTACKS
    rows["scored"], rows["collapsed"] = scored, collapsed(rows) & scored
    # One that abstained left the model alone on purpose, and says so itself.
    rows["unmoved"] = rows["moved"].eq(False).fillna(False).astype(bool) & scored & (rows["status"] == "ok")
    rows["severity"] = rows["status"].map({status: rank for rank, status in enumerate(STATUSES)}).fillna(0).astype(int)
    rows.loc[rows["without"], "severity"] = -1  # tells only if there is no other cell
    rows["published"] = rows["published"].eq(True)
    searched = rows["role"] == "search"
    meant = rows["models"].astype("float64")
    if across_attacks:  # a baseline's row knows of its own attack alone
        meant = meant.where(searched, meant[searched].max())
    else:  # a setting that was scored over all attacks counts here on this one's seeds alone
        shared = _of_all_attacks(rows)
        meant = meant.where(~shared, rows["seed"].nunique())
    rows["models"] = meant

    rows["victim_scored"] = rows["of_victim"].where(rows["scored"])

    owner = [*GROUP, "role"]
    grouped = rows.groupby([*owner, "trial"], sort=False, dropna=False)
    table = grouped[means].mean()
    for name in _SPREAD:
        table[f"{name}_min"], table[f"{name}_max"] = grouped[name].min(), grouped[name].max()
    table[list(_POOLED)] = grouped[list(_POOLED)].sum()
    if rule != MEAN:
        _take_together(table, rows, rule)
    table["aggregate"] = str(rule)
    firsts = ["study", "defense", "device", "versions", "error", "flags", "start", *params]
    table[firsts] = rows.loc[grouped["row"].first(), firsts].to_numpy(dtype=object)
    if len(table) < len(rows):  # the first cell may hold no error where a later one does
        table[["error", "flags"]] = grouped[["error", "flags"]].first()
    table["published"], table["collapsed"] = grouped["published"].all(), grouped["collapsed"].any()
    table["status"] = grouped["severity"].max().map({**dict(enumerate(STATUSES)), -1: NOT_IMPLANTED})
    table["cells"], table["models"] = grouped["scored"].sum(), grouped["models"].max()
    table["unmoved"] = grouped["unmoved"].sum()
    table["models_counted"] = grouped["victim_scored"].nunique()
    table["finished_row"] = grouped["row"].max()
    table = table.reset_index()
    implanted = rows[~rows["without"]]
    seen = rows.groupby(owner, dropna=False)["of_victim"].nunique().rename("seen").reset_index()
    table = table.merge(seen, on=owner, how="left")
    # Earlier versions did not say it: then as many as have a row.
    table["models"] = table[["models", "seen"]].max(axis=1).astype(int)
    table = table.drop(columns="seen")
    expected = implanted.groupby(owner, dropna=False)["cell"].nunique().rename("expected_cells").reset_index()
    table = table.merge(expected, on=owner, how="left")
    table["complete"] = (table["cells"] > 0) & (table["cells"] == table["expected_cells"].fillna(0))
    table["dropped"] = table["trial"].isin(rows.loc[rows[DROPPED_BY].notna(), "trial"])
    table["complete"] &= ~table["dropped"]
    return table.sort_values("finished_row").reset_index(drop=True)


def rule_in_words(settings: pd.DataFrame) -> str:
    """How the attacks were taken together in rows of `aggregate`, for headings: ``means``, ``worst case``."""
    return parse_rule(str(settings["aggregate"].iloc[0])).in_words


def _take_together(table: pd.DataFrame, rows: pd.DataFrame, rule: OverAttacks) -> None:
    """Put the rates by ``rule``, and the counts of the test images behind them, in the place of the means over cells.

    Args:
        table: one row per setting, indexed by `GROUP`, role and trial.
        rows: one per cell, ``of_attack`` its own attack.
    """
    keys = list(table.index.names)
    by_attack = rows.groupby([*keys, "of_attack"], sort=False, dropna=False)
    means, counts = by_attack[list(METRICS)].mean(), by_attack[list(_POOLED)].sum()
    behind = {f"{metric}{half}": f"{name}{half}" for metric, name in _COUNTS.items() for half in ("", "_report")}
    for metric in METRICS:
        known = means[metric].dropna().sort_values(ascending=not metric.startswith("asr"), kind="stable")
        of_setting = known.groupby(level=keys, sort=False, dropna=False)
        share = pd.Series(rule.shares(of_setting.cumcount(), of_setting.transform("size")), known.index)
        taken = (known * share).groupby(level=keys, sort=False, dropna=False).sum()
        table[metric] = taken.reindex(table.index)
        if metric in behind:
            images = counts.loc[share.index, behind[metric]].where(share > 0, 0.0)
            of_images = images.groupby(level=keys, sort=False, dropna=False).sum()
            table[behind[metric]] = of_images.reindex(table.index).fillna(0.0)


def models_of(one: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """On how many of its models a setting's numbers rest, ``1 of 4 models``; nothing where there is one alone."""
    return models_in_words(int(one["models_counted"]), int(one["models"]))


def movement_text(one: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """``moved nothing`` of a setting whose repair left the model where it was, with the runs where not in all.

    Nothing where it moved in all of them, or where it was not measured.
    """
    unmoved, cells = int(one.get("unmoved", 0)), int(one["cells"])
    if not unmoved:
        return ""
    return "moved nothing" + ("" if unmoved == cells else f" in {unmoved} of {cells} runs")


def is_shared(frame: pd.DataFrame) -> bool:
    """Whether settings were scored over several attacks at once (``search.per: all``)."""
    searched = frame[frame["role"].fillna("search") == "search"]
    if not len(searched):
        return False
    # Also where the victims of one attack alone hold a backdoor, so that the others have no row.
    pooled = _of_all_attacks(searched)
    meant = searched.loc[pooled, "models"].astype("float64").max()
    return int(searched.groupby("trial")["attack"].nunique().max()) > 1 or bool(meant > searched["seed"].nunique())


def _of_all_attacks(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of a search over all attacks: of a sweep, the label begins with the combination."""
    labels = zip(rows["search"].fillna(""), rows["combination"], strict=True)
    found = [str(label).removeprefix(f"{name}/").startswith(f"{ALL_ATTACKS}/") for label, name in labels]
    return pd.Series(found, rows.index, dtype=bool)


def aggregate_all(frame: pd.DataFrame) -> pd.DataFrame:
    """`aggregate` per attack and, where settings were scored over several attacks, across them too."""
    tables = [aggregate(frame)] + ([aggregate(frame, across_attacks=True)] if is_shared(frame) else [])
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Searched settings with a full result, per attack and, where they were scored over several, for ``all``."""
    table = aggregate_all(frame)
    return table[(table["role"] == "search") & table["complete"]]


def fronts(frame: pd.DataFrame) -> pd.DataFrame:
    """Front of the searched settings per (dataset, model, attack, defense), as in front.csv; see `on_front`.

    Members are chosen on the search half and ranked from least ASR; both halves' values, knee and picks are given,
    the settings follow as ``param.*``. Failed trials, collapsed models and backdoors that were not implanted never
    enter; a diverged trial is an ordinary, bad point.
    """
    table = candidates(frame)
    parts = [_front_of(group) for _, group in table.groupby(list(GROUP), sort=True, dropna=False)]
    params = [name for name in frame.columns if name.startswith(PARAM)]
    if not parts:
        return pd.DataFrame(columns=[*FRONT_COLUMNS, *params])
    return pd.concat(parts, ignore_index=True)[[*FRONT_COLUMNS, *params]]


def fronts_by_rule(frame: pd.DataFrame) -> pd.DataFrame:
    """Of settings that were scored over several attacks, the front by their means, that of the worst case, the study's.

    One row per member: `GROUP`, ``rule``, ``trial``; ``asr_report`` and ``clean_accuracy_report`` by that rule; and the
    same by means and in the worst case, ``*_mean`` and ``*_worst``. Empty where no search was over several attacks.
    """
    values = ["asr_report", "clean_accuracy_report"]
    columns = [*GROUP, "rule", "trial", *values, *(f"{name}_{rule}" for name in values for rule in (MEAN, WORST_CASE))]
    if not is_shared(frame):
        return pd.DataFrame(columns=columns)
    tables = {rule: aggregate(frame, True, rule) for rule in dict.fromkeys((MEAN, WORST_CASE, rule_of(frame)))}
    tables = {rule: one[(one["role"] == "search") & one["complete"]] for rule, one in tables.items()}
    names = [*GROUP, "trial"]
    judged = [tables[one].set_index(names)[values].add_suffix(f"_{one}") for one in (MEAN, WORST_CASE)]
    both = judged[0].join(judged[1])
    found = [
        on_front(group).assign(rule=str(rule)).join(both, on=names)
        for rule, one in tables.items()
        for _, group in one.groupby(list(GROUP), sort=True, dropna=False)
    ]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def marked(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows with ``on_front`` told of those that belong to a search: whether it has their setting on its front.

    Where settings were scored over several attacks, that is the front over all of them.
    """
    members = fronts(frame)
    if is_shared(frame):
        members = members[members["attack"] == ALL_ATTACKS]
    searched = frame["role"].fillna("search") == "search"
    return frame.assign(on_front=frame["trial"].isin(members["trial"]).astype("boolean").where(searched))


def hypervolume_over_trials(frame: pd.DataFrame) -> pd.DataFrame:
    """Hypervolume after each finished setting: GROUP columns, ``finished`` (1, 2, ...), ``search`` and ``report``.

    Settings that were dropped in a race are among them: they were tried, and change nothing.
    ``search`` never falls. ``report`` is the hypervolume on the report half of the settings that are on the search-half
    front at that time; it may fall, and the gap between the two is the luck in the selection.
    """
    records: list[tuple[Any, ...]] = []
    table = aggregate_all(frame)
    tried = table[(table["role"] == "search") & (table["complete"] | table["dropped"])]
    for keys, group in tried.groupby(list(GROUP), sort=True, dropna=False):
        running = RunningFront()
        search = report = 0.0
        names = ["asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report"]
        sound = ~(group["collapsed"].astype(bool) | group["dropped"]).to_numpy(dtype=bool)
        for finished, (a, c, a_report, c_report) in enumerate(group[names].to_numpy(dtype=float), start=1):
            if sound[finished - 1] and running.add(a, c, (a_report, c_report)):
                search, report = running.hypervolume, hypervolume(running.elsewhere)
            records.append((*keys, finished, search, report))
    return pd.DataFrame(records, columns=[*GROUP, "finished", "search", "report"])


def compare(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Studies side by side, for ``superft front A B``: one row per group and study (the key), groups together.

    ``hypervolume_search``/``_report`` and ``box_search``/``_report`` (second box); the knee's and the picks' values
    on the report half (``knee_*``, ``asr_drop_*``: report-half ASR of that pick); ``best_clean_accuracy``:
    report-half accuracy of the most accurate setting with ASR <= 0.1 on the search half. Missing values: nothing
    satisfies the condition.
    """
    records = []
    for name, frame in frames.items():
        for keys, group in candidates(frame).groupby(list(GROUP), sort=True, dropna=False):
            front = _front_of(group)
            halves = {
                half: front[[f"asr_{half}", f"clean_accuracy_{half}"]].to_numpy(float) for half in ("search", "report")
            }
            before = {half: float(group[f"clean_accuracy_before_{half}"].mean()) for half in ("search", "report")}
            bends = front[front["is_knee"]]
            record = {**dict(zip(GROUP, keys, strict=True)), "study": name, "trials": len(group), "front": len(front)}
            record["models"] = models_of(group.iloc[0])
            record |= {f"hypervolume_{half}": hypervolume(points) for half, points in halves.items()}
            record |= {f"box_{half}": hypervolume_box(points, before[half]) for half, points in halves.items()}
            for metric in ("asr", "clean_accuracy"):
                record[f"knee_{metric}"] = float(bends[f"{metric}_report"].iloc[0]) if len(bends) else np.nan
            record["knee_settings"] = settings_text(bends.iloc[0]) if len(bends) else ""
            for pick in PICKS:
                chosen = front[front["picks"].str.split(";").map(lambda labels, pick=pick: pick in labels)]
                record[f"asr_{pick}"] = float(chosen["asr_report"].iloc[0]) if len(chosen) else np.nan
            removed = front[front["asr_search"] <= 0.1]
            record["best_clean_accuracy"] = float(removed["clean_accuracy_report"].iloc[-1]) if len(removed) else np.nan
            records.append(record)
    columns = [
        *GROUP,
        "study",
        "trials",
        "front",
        "models",
        "hypervolume_search",
        "hypervolume_report",
        "box_search",
        "box_report",
    ]
    columns += [
        "knee_asr",
        "knee_clean_accuracy",
        "knee_settings",
        *(f"asr_{pick}" for pick in PICKS),
        "best_clean_accuracy",
    ]
    return pd.DataFrame(records, columns=columns).sort_values([*GROUP], kind="stable").reset_index(drop=True)


def settings_of(row: Mapping[Any, Any] | pd.Series[Any]) -> dict[str, Any]:
    """The settings of a row of any table here, without those that its defense does not have."""
    return {str(name)[len(PARAM) :]: v for name, v in row.items() if str(name).startswith(PARAM) and not pd.isna(v)}


def settings_text(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Settings as ``lr_base=0.0003, iterations=500``; floats to 3 digits."""
    return ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings_of(row).items())


def _front_of(group: pd.DataFrame) -> pd.DataFrame:
    front = on_front(group).copy()
    points = front[["asr_search", "clean_accuracy_search"]].to_numpy(dtype=float)
    labels: list[list[str]] = [[] for _ in range(len(front))]
    before = (float(front[f"{metric}_before_search"].mean()) for metric in ("asr", "clean_accuracy"))
    for label, index in picks(points, *before).items():
        labels[index].append(label)
    front["rank"] = np.arange(1, len(front) + 1)
    # Two points are a straight line: calling its accurate end the knee would praise a setting that repairs nothing.
    front["is_knee"] = np.arange(len(front)) == (knee(points) if len(front) not in (0, 2) else -1)
    front["picks"] = [";".join(names) for names in labels]
    front["der_report"] = [
        der(*values)
        for values in front[
            ["asr_before_report", "asr_report", "clean_accuracy_before_report", "clean_accuracy_report"]
        ]
        .to_numpy(dtype=float)
        .tolist()
    ]
    return front


def _other_half(rows: pd.DataFrame, metric: str, count: str) -> pd.Series[float]:
    """``metric`` on the search half, from its values on the full set and the report half; else the full value."""
    full, report = rows[metric].astype("float64"), rows[f"{metric}_report"].astype("float64")
    n, n_report = rows[count].astype("float64"), rows[f"{count}_report"].astype("float64")
    rest = ((full * n - report * n_report) / (n - n_report).where(n > n_report)).clip(0.0, 1.0)
    return rest.fillna(full)
