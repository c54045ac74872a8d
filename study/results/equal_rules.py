"""Searches beside each other under equal rules, and what they cost: pure functions of ledger rows.

Two rules make searches comparable (both are reported): *equal trials*, the first n settings of each, and *equal
compute*, the settings that each finished within the same E per cell. The front is chosen on the search half every
time; its hypervolume is that of the report half.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from study.results.fronts import on_front
from study.results.in_words import models_of
from study.results.intervals import ENDS, Array, Estimate, Statistic, counted_settings, estimate
from study.results.outcomes import NO_BACKDOOR, OUTCOMES, outcome_of
from study.results.pareto import BOX_ASR, BOX_DROP
from study.results.rows import ALL_ATTACKS, GROUP, PLACE, charged_epochs, is_shared
from study.results.settings import aggregate

RULES = ("all", "trials", "compute")


def areas(asr: Array, accuracy: Array) -> Array:
    """Hypervolumes of many sets of points at once, (D,), of (D, P) coordinates in [0, 1]; dominated points add 0."""
    order = np.argsort(asr, axis=1, kind="stable")
    sorted_asr = np.take_along_axis(asr, order, axis=1)
    best = np.maximum.accumulate(np.take_along_axis(accuracy, order, axis=1), axis=1)
    ends = np.concatenate([sorted_asr[:, 1:], np.ones((len(asr), 1))], axis=1)
    return np.asarray(((ends - sorted_asr) * best).sum(axis=1), dtype=float)


def box_areas(asr: Array, accuracy: Array, clean_accuracy_before: float) -> Array:
    """`front.hypervolume_box` of many sets of points at once, (D,)."""
    inner = np.clip((accuracy - (clean_accuracy_before - BOX_DROP)) / BOX_DROP, 0.0, 1.0)
    return areas(np.clip(asr / BOX_ASR, 0.0, 1.0), inner)


def parity(frame: pd.DataFrame, budget_epochs: float | None = None) -> pd.DataFrame:
    """Hypervolumes of all searches of a study: one row per GROUP that has a finished setting.

    Columns per rule R in RULES (``all``: everything that was searched, ``trials``, ``compute``): ``settings_R``,
    ``epochs_R`` (E per cell that these settings cost), ``hypervolume_R`` and ``box_R`` with ``_low`` and ``_high``
    (report half; whole plane, and the box of little ASR and little loss). ``equal_trials`` and ``equal_epochs`` are the
    common n and E of the place (see PLACE); missing where there is one search alone. ``models``: on how many models the
    numbers rest, in words.

    n is the number of settings of the shortest search, of those with at least half as many as the longest: a search
    with fewer has no part in equal trials (missing), and where no two have, nobody has. E is ``budget_epochs`` if the
    study had one; a published setting that alone costs more is no part of equal compute. Else it is the least that any
    search spent in all, but no less than the dearest first setting: below that some search would have nothing to show,
    and a defense that costs nothing (it prunes by weights alone) would cut all others to nothing. A search that had
    ended before shows all that it has.
    """
    tables = [(frame, aggregate(frame))]
    if is_shared(frame):
        tables.append((frame.assign(attack=ALL_ATTACKS), aggregate(frame, across_attacks=True)))
    records = []
    for rows, table in tables:
        searched = table[(table["role"] == "search") & (table["status"] != "backdoor_not_implanted")].copy()
        searched["epochs_cell"] = _epochs_per_cell(rows, searched)
        for place, group in searched.groupby(list(PLACE), sort=True, dropna=False):
            found = {str(name): one for name, one in group.groupby("defense_label", sort=True) if one["complete"].any()}
            if not found:
                continue
            common: dict[str, float] = {"equal_trials": np.nan, "equal_epochs": np.nan}
            within = {name: _within_budget(one, budget_epochs) for name, one in found.items()}
            if len(found) > 1:
                counts = sorted(len(one) for one in found.values() if 2 * len(one) >= max(map(len, found.values())))
                common["equal_trials"] = counts[0] if len(counts) > 1 else np.nan
                spent = [one["epochs_cell"].cumsum().to_numpy() for one in within.values() if len(one)]
                common["equal_epochs"] = budget_epochs or max(min(e[-1] for e in spent), max(e[0] for e in spent))
            for name, one in found.items():
                parts = {"all": one}
                if len(one) >= common["equal_trials"]:
                    parts["trials"] = one.iloc[: int(common["equal_trials"])]
                if len(found) > 1:
                    own = within[name]
                    parts["compute"] = own[own["epochs_cell"].cumsum() <= common["equal_epochs"] * (1 + 1e-9)]
                record = {**dict(zip(PLACE, place, strict=True)), "defense_label": name, **common}
                record["models"] = models_of(one[one["complete"]].iloc[0])
                for rule, part in parts.items():
                    record |= _estimates(frame, part, rule) if len(part) else {}
                    record[f"settings_{rule}"] = len(part)
                    record[f"epochs_{rule}"] = float(part["epochs_cell"].sum())
                records.append(record)
    values = [f"{key}_{rule}" for rule in RULES for key in ("settings", "epochs")]
    values += [f"{key}_{rule}{end}" for rule in RULES for key in ("hypervolume", "box") for end in ENDS]
    return pd.DataFrame(records, columns=[*GROUP, "models", "equal_trials", "equal_epochs", *values])


def search_costs(frame: pd.DataFrame) -> pd.DataFrame:
    """What every search took: one row per GROUP, sums over all of its trials (a setting on one cell).

    Columns: ``settings``, ``trials``; how many trials came out as each of OUTCOMES (a collapsed model is in none of the
    others), and ``no_backdoor`` for those whose victim had none; ``epochs``, the E that was spent; ``epochs_found``,
    the E of ready-made work beyond the first use, which is charged; ``seconds`` of wall time in trials, and
    ``gpu_seconds``, the same times each trial's share of a GPU.
    """
    share = frame["gpus"].astype("float64").fillna(0.0) if "gpus" in frame else 0.0
    # The outcome before the attacks are pooled: it depends on each attack's own victims.
    rows = frame.assign(outcome=outcome_of(frame), gpu_seconds=frame["wall_seconds"] * share)
    rows = rows[frame["role"].fillna("search") == "search"]
    parts = [rows] + ([rows.assign(attack=ALL_ATTACKS)] if is_shared(frame) else [])
    rows = pd.concat(parts, ignore_index=True) if len(parts) > 1 else rows.reset_index(drop=True)
    spent, alone = charged_epochs(rows), charged_epochs(rows, alone=True)
    records = []
    for keys, group in rows.groupby(list(GROUP), sort=True, dropna=False):
        at = group.index
        record = dict(zip(GROUP, keys, strict=True)) | {"settings": group["trial"].nunique(), "trials": len(group)}
        record |= {name: int((group["outcome"] == name).sum()) for name in (*OUTCOMES, NO_BACKDOOR)}
        record |= {"epochs": float(spent[at].sum()), "epochs_found": float((alone[at] - spent[at]).sum())}
        record |= {"seconds": float(group["wall_seconds"].sum()), "gpu_seconds": float(group["gpu_seconds"].sum())}
        records.append(record)
    columns = ["settings", "trials", *OUTCOMES, NO_BACKDOOR, "epochs", "epochs_found", "seconds", "gpu_seconds"]
    return pd.DataFrame(records, columns=[*GROUP, *columns])


def _within_budget(settings: pd.DataFrame, budget: float | None) -> pd.DataFrame:
    """Settings of one search without a published one that alone costs more than the budget."""
    if budget is None:
        return settings
    beyond = settings["published"].astype(bool) & (settings["epochs_cell"] > budget * (1 + 1e-9))
    return settings[~beyond]


def _epochs_per_cell(rows: pd.DataFrame, settings: pd.DataFrame) -> list[float]:
    """Mean E over the cells of each setting, what failed included: it was spent as well.

    Of a setting that was dropped in a race the cells count that it was spared, too: nothing was spent there.
    """
    keys = [*GROUP, "trial"]
    cost = charged_epochs(rows).fillna(0.0)
    total = cost.groupby([rows[key] for key in keys], dropna=False).sum()
    cells = rows.groupby(keys, dropna=False).size()
    meant = settings["expected_cells"].where(settings["dropped"]).fillna(0)
    names = settings[keys].itertuples(index=False, name=None)
    return [float(total[key] / max(cells[key], least)) for key, least in zip(names, meant, strict=True)]


def _estimates(rows: pd.DataFrame, settings: pd.DataFrame, rule: str) -> dict[str, Any]:
    """Both hypervolumes, with intervals, of the front of these settings (of one group)."""
    members = on_front(settings[settings["complete"]])
    if not len(members):  # nothing failed to be measured, but every model collapsed
        worthless = settings["complete"].any()
        return {f"{key}_{rule}{end}": 0.0 for key in ("hypervolume", "box") for end in ENDS if worthless}
    before = float(members["clean_accuracy_before_report"].mean())
    statistics: dict[str, Statistic] = {"hypervolume": areas, "box": partial(box_areas, clean_accuracy_before=before)}
    counted = counted_settings(rows, members)
    points = members[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float)
    record: dict[str, Any] = {}
    for key, statistic in statistics.items():
        if counted is None:
            value = float(statistic(points[:, 0][None], points[:, 1][None])[0])
            one = Estimate(value, value, value)
        else:
            one = estimate(counted, statistic)
        record |= {f"{key}_{rule}": one.value, f"{key}_{rule}_low": one.low, f"{key}_{rule}_high": one.high}
    return record
