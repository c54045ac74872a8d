"""One row per setting, from the rows of its cells: pure functions of ledger rows (``ledger.to_frame``).

A *setting* is what Optuna proposed once; it may have been scored on several cells (seeds, attacks), whose metrics are
averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from study.record.columns import DROPPED_BY, PARAM
from study.results.intervals import interval, student
from study.results.rows import (
    ALL_ATTACKS,
    GROUP,
    cell_names,
    charged_epochs,
    collapsed,
    holds_no_backdoor,
    is_shared,
    of_all_attacks,
    rule_of,
    true_status,
    without_beside,
)
from study.results.scores import NOT_IMPLANTED, STATUSES, WORST
from study.spec.over_attacks import MEAN, OverAttacks

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
_BEFORE_SEARCH = ("asr_before_search", "clean_accuracy_before_search")
# Of the report half, with every collapsed model as the worst there is: so searches are told of their half.
AS_TOLD = {"asr_report": "asr_told", "clean_accuracy_report": "clean_accuracy_told"}
_EXTRA_MEANS = ("asr_base", "false_target_rate", *_BEFORE_SEARCH)
_SPREAD = ("asr_report", "clean_accuracy_report")
_COSTS = ("charged_epochs", "epochs_alone", "wall_seconds", "steps")
_COUNTS = {"asr": "n_triggered", "clean_accuracy": "n_clean"}
_IMAGES = ("n_clean", "n_triggered", "n_clean_report", "n_triggered_report")
# Of these a setting has `*_reach`: half the width of the interval over its attackers, see `results.intervals`.
_REACHED = tuple(
    f"{metric}{half}"
    for half in ("_report", "_before_report")
    for metric in ("asr", "clean_accuracy", "robust_accuracy")
)


def aggregate(frame: pd.DataFrame, across_attacks: bool = False, rule: OverAttacks | None = None) -> pd.DataFrame:
    """One row per setting: means over its cells, in the order in which the settings were finished.

    Cells are its pairs of seed and defense seed, with ``across_attacks`` those on every attack, under the attack name
    ``all``: there rates are taken together by ``rule`` (by default the study's), after the repair and before it, and
    the counts of test images are of the attacks that count. ``aggregate`` names the rule. Repeated searches and
    settings on fresh seeds are left out. Cells whose backdoor was not implanted measure nothing and are left out, also
    those of trials that abstained or diverged there. ``complete`` is true for a setting that has a result on every cell
    that its rivals in the group were scored on: a mean over fewer is no fair rival, so a setting with a failed or still
    missing cell never enters a front, nor one that was ``dropped`` in a race, on whatever attack. ``status`` is the
    worst of those cells, ``collapsed`` whether any of them did; ``asr_told`` and ``clean_accuracy_told`` are the rates
    of the report half with every collapsed model as the worst there is; ``cells`` counts those in the mean,
    ``models_counted`` their victims, ``models`` the victims that the setting was meant for (also those without a
    backdoor, which may have no row); ``unmoved`` counts the cells in the mean whose repair hardly moved, ``ruined``
    those that collapsed or diverged; ``*_min`` and ``*_max`` span the cells, ``*_reach`` is half the width of the 95 %
    interval over the attackers (`intervals.reach`; missing where there is one); counts of test images are those of one
    cell, which all share; costs are means per cell.
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
    for (rate, told), worst in zip(AS_TOLD.items(), WORST, strict=True):
        rows[told] = rows[rate].astype("float64").mask(collapsed(rows), worst)
    means = [*METRICS, *AS_TOLD.values(), *_EXTRA_MEANS, *_COSTS]
    rows[[*means, *_IMAGES]] = rows[[*means, *_IMAGES]].astype("float64")
    scored = ~rows["status"].isin(["failed", NOT_IMPLANTED])
    rows.loc[~scored, [*means, *_IMAGES]] = np.nan
    rows["of_attack"] = rows["attack"]
    if across_attacks:
        single = rows["role"] != "search"  # one settings point per defense, but a trial of its own per attack
        rows.loc[single, "trial"] = (
            ALL_ATTACKS + "/" + rows.loc[single, "defense_label"] + "/" + rows.loc[single, "role"]
        )
        rows["attack"] = ALL_ATTACKS
    rows["scored"], rows["collapsed"] = scored, collapsed(rows) & scored
    rows["ruined"] = rows["collapsed"] | (rows["status"] == "diverged")
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
        shared = of_all_attacks(rows)
        meant = meant.where(~shared, rows["seed"].nunique())
    rows["models"] = meant

    rows["victim_scored"] = rows["of_victim"].where(rows["scored"])

    owner = [*GROUP, "role"]
    grouped = rows.groupby([*owner, "trial"], sort=False, dropna=False)
    table = grouped[means].mean()
    for name in (*_SPREAD, *AS_TOLD.values()):
        table[f"{name}_min"], table[f"{name}_max"] = grouped[name].min(), grouped[name].max()
    table[list(_IMAGES)] = grouped[list(_IMAGES)].mean()
    if rule != MEAN:
        _take_together(table, rows, [*owner, "trial"], rule)
    reached = _reaches(rows, [*owner, "trial"], rule)
    table[list(reached.columns)] = reached
    table["aggregate"] = str(rule)
    firsts = ["study", "defense", "device", "versions", "error", "flags", "start", *params]
    table[firsts] = rows.loc[grouped["row"].first(), firsts].to_numpy(dtype=object)
    if len(table) < len(rows):  # the first cell may hold no error where a later one does
        table[["error", "flags"]] = grouped[["error", "flags"]].first()
    table["published"], table["collapsed"] = grouped["published"].all(), grouped["collapsed"].any()
    table["status"] = grouped["severity"].max().map({**dict(enumerate(STATUSES)), -1: NOT_IMPLANTED})
    table["cells"], table["models"] = grouped["scored"].sum(), grouped["models"].max()
    table["unmoved"], table["ruined"] = grouped["unmoved"].sum(), grouped["ruined"].sum()
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


def on_victims(settings: pd.DataFrame) -> pd.DataFrame:
    """Rows of `aggregate` with a result on a backdoored model, most cells first: the victims of the first are all."""
    measured = settings[settings["asr_report"].notna() & (settings["role"] != "control")]
    return measured.sort_values("cells", ascending=False, kind="stable")


def _take_together(table: pd.DataFrame, rows: pd.DataFrame, keys: list[str], rule: OverAttacks) -> None:
    """Put the rates by ``rule``, and the counts of the test images behind them, in the place of the means over cells.

    Args:
        table: one row per setting, indexed by ``keys``.
        rows: one per cell, ``of_attack`` its own attack.
    """
    by_attack = rows.groupby([*keys, "of_attack"], sort=False, dropna=False)
    rates = (*METRICS, *AS_TOLD.values(), *_BEFORE_SEARCH)
    means, counts = by_attack[list(rates)].mean(), by_attack[list(_IMAGES)].mean()
    behind = {f"{metric}{half}": f"{name}{half}" for metric, name in _COUNTS.items() for half in ("", "_report")}
    for metric in rates:
        known, share = _shares(means[metric], keys, rule)
        table[metric] = (known * share).groupby(level=keys, sort=False, dropna=False).sum().reindex(table.index)
        if metric in behind:
            images = counts.loc[share.index, behind[metric]].where(share > 0)
            table[behind[metric]] = images.groupby(level=keys, sort=False, dropna=False).mean().reindex(table.index)


def _shares(means: pd.Series[float], keys: list[str], rule: OverAttacks) -> tuple[pd.Series[float], pd.Series[float]]:
    """Rates by setting and attack, those that are known, and the share that each has in its setting's."""
    known = means.dropna().sort_values(ascending=not str(means.name).startswith("asr"), kind="stable")
    of_setting = known.groupby(level=keys, sort=False, dropna=False)
    return known, pd.Series(rule.shares(of_setting.cumcount(), of_setting.transform("size")), known.index)


def _reaches(rows: pd.DataFrame, keys: list[str], rule: OverAttacks) -> pd.DataFrame:
    """``*_reach`` of every setting: from its rates with each one of its attackers left out."""
    rates, by_attacker = list(_REACHED), rows.groupby([*keys, "seed"], sort=False, dropna=False)[list(_REACHED)]
    own, counts = by_attacker.sum(), by_attacker.count()
    if rule == MEAN:
        whole, all_counts = (
            part.groupby(level=keys, sort=False, dropna=False).transform("sum") for part in (own, counts)
        )
        without = (whole - own) / (all_counts - counts).where(all_counts > counts)
    else:
        without = pd.DataFrame(np.nan, own.index, rates)
        for seed in rows["seed"].unique():
            rest = rows[rows["seed"] != seed].groupby([*keys, "of_attack"], sort=False, dropna=False)[rates].mean()
            mine = without.index.get_level_values("seed") == seed
            settings = without.index[mine].droplevel("seed")
            for metric in rates:
                known, share = _shares(rest[metric], keys, rule)
                taken = (known * share).groupby(level=keys, sort=False, dropna=False).sum()
                without.loc[mine, metric] = taken.reindex(settings).to_numpy()
    of_setting = without.where(counts > 0).groupby(level=keys, sort=False, dropna=False)
    attackers = of_setting.count()
    found: pd.DataFrame = student(attackers.where(attackers > 1)) * ((attackers - 1) * of_setting.var(ddof=0)) ** 0.5
    return found.add_suffix("_reach")


def aggregate_all(frame: pd.DataFrame) -> pd.DataFrame:
    """`aggregate` per attack and, where settings were scored over several attacks, across them too."""
    tables = [aggregate(frame)] + ([aggregate(frame, across_attacks=True)] if is_shared(frame) else [])
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def candidates(frame: pd.DataFrame) -> pd.DataFrame:
    """Searched settings with a full result, per attack and, where they were scored over several, for ``all``."""
    table = aggregate_all(frame)
    return table[(table["role"] == "search") & table["complete"]]


def ends_of(one: Mapping[str, Any] | pd.Series[Any], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a rate of a setting on the report half; None where it or its images are not known.

    Args:
        one: row of `aggregate`.
        metric: ``asr``, ``clean_accuracy`` or ``robust_accuracy``; before repair with ``_before``.
    """
    images = _COUNTS.get(metric.removesuffix("_before"), _COUNTS["asr"])
    return interval(one[f"{metric}_report"], one[f"{images}_report"], one[f"{metric}_report_reach"])


def _other_half(rows: pd.DataFrame, metric: str, count: str) -> pd.Series[float]:
    """``metric`` on the search half, from its values on the full set and the report half; else the full value."""
    full, report = rows[metric].astype("float64"), rows[f"{metric}_report"].astype("float64")
    n, n_report = rows[count].astype("float64"), rows[f"{count}_report"].astype("float64")
    rest = ((full * n - report * n_report) / (n - n_report).where(n > n_report)).clip(0.0, 1.0)
    return rest.fillna(full)
