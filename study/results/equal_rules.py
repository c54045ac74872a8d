"""Searches beside each other under equal rules, and what they cost: pure functions of ledger rows.

Two rules make searches comparable (both are reported): *equal trials*, the first n settings of each, and *equal
compute*, the settings that each finished within the same E per cell. The front is chosen on the search half every
time; its hypervolume is that of the report half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.results.fronts import on_front
from study.results.in_words import models_of
from study.results.outcomes import NO_BACKDOOR, OUTCOMES, outcome_of
from study.results.pareto import BOX_ASR, BOX_DROP, hypervolume, hypervolume_box
from study.results.rows import ALL_ATTACKS, GROUP, PLACE, charged_epochs, is_shared, true_status
from study.results.settings import aggregate
from study.spec.over_attacks import MEAN, OverAttacks, parse_rule

Array = NDArray[np.float64]

DRAWS = 2000
DRAWS_SEED = 2022  # of the intervals alone: the same ledger gives the same page
LEVEL = 95.0
RULES = ("all", "trials", "compute")
ENDS = ("", "_low", "_high")
_CELL = ("seed", "defense_seed", "cell")


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval (equal to the value where nothing is known of the number of test images)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Counted:
    """What the points of one front were measured as, cell by cell: P points, C cells.

    Args:
        asr, accuracy: report-half rates, (P, C).
        n_triggered, n_clean: test images behind them, (C,).
        seeds, defense_seeds: of each cell, (C,).
        attacks: of each cell, (C,); needed by a ``rule`` that takes some attacks alone.
    """

    asr: Array
    accuracy: Array
    n_triggered: Array
    n_clean: Array
    seeds: NDArray[np.int64]
    defense_seeds: NDArray[np.int64]
    attacks: NDArray[np.object_] | None = None
    rule: OverAttacks = MEAN


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


def resample(
    counted: Counted, draws: int = DRAWS, seed: int = DRAWS_SEED, *, shared_luck: bool = True
) -> tuple[Array, Array]:
    """Plausible (ASR, accuracy) of the points given their counts, each (draws, P).

    Every draw takes seeds with replacement (where there are several), of each of them defense seeds with replacement,
    then a rate for each of their counts k of n from Beta(k + 1/2, n - k + 1/2) (Jeffreys): drawing binomial counts
    would call 0 of 226 certain. Clean and triggered images have luck of their own.

    Points of one cell were measured on the same images; how far they err on the same ones, counts do not tell. So the
    wide side is taken, which depends on what is asked:

    - Of an area, ``shared_luck``: all points of a cell take the same quantile of their own distributions. Independent
      draws would call many points more certain than one, and lucky maxima would push the area up.
    - Of the difference between two points, not: each takes a quantile of its own, as if they erred on other images. A
      shared one would cancel, and call a difference of a point certain on 500 images.
    """
    rng = np.random.default_rng(seed)
    weights = _times(rng, counted.seeds, draws).astype(float)  # (D, C)
    for seed_of_victim in np.unique(counted.seeds):
        own = counted.seeds == seed_of_victim
        weights[:, own] *= _times(rng, counted.defense_seeds[own], draws)
    weights /= weights.sum(axis=1, keepdims=True)

    def rates(values: Array, counts: Array, high_is_worst: bool) -> Array:
        n = np.maximum(counts, 0.0)
        hits = np.rint(values * n)
        ordered = np.sort(rng.beta(hits[..., None] + 0.5, (n - hits)[..., None] + 0.5, (*values.shape, draws)), axis=2)
        own = values.shape if not shared_luck else (1, values.shape[1])
        luck = rng.permuted(np.broadcast_to(np.arange(draws), (*own, draws)), axis=2)
        drawn = np.take_along_axis(ordered, np.broadcast_to(luck, ordered.shape), axis=2)
        if counted.rule == MEAN or counted.attacks is None:
            return np.asarray(np.einsum("pcd,dc->dp", drawn, weights))
        return _together(drawn, weights, counted.attacks, counted.rule, high_is_worst)

    return rates(counted.asr, counted.n_triggered, True), rates(counted.accuracy, counted.n_clean, False)


def _together(
    drawn: Array, weights: Array, attacks: NDArray[np.object_], rule: OverAttacks, high_is_worst: bool
) -> Array:
    """Attacks taken together draw by draw, (D, P), of rates (P, C, D) on cells with ``weights`` (D, C)."""
    means = []
    for attack in np.unique(attacks):
        own = weights * (attacks == attack)
        # Of an attack none of whose seeds came up in a draw, all count there: it is one of the attacks all the same.
        own = np.where(own.sum(axis=1, keepdims=True) > 0, own, (attacks == attack).astype(float))
        means.append(np.einsum("pcd,dc->dp", drawn, own / own.sum(axis=1, keepdims=True)))
    ordered = np.sort(np.stack(means), axis=0)
    ordered = ordered[::-1] if high_is_worst else ordered
    return np.asarray(np.einsum("kdp,k->dp", ordered, rule.shares(np.arange(len(means)), len(means))))


def _times(rng: np.random.Generator, seeds: NDArray[np.int64], draws: int) -> NDArray[np.int64]:
    """How often the seed of each cell comes up when seeds are drawn with replacement, as many as there are: (D, C)."""
    names, place = np.unique(seeds, return_inverse=True)
    picked = rng.integers(len(names), size=(draws, len(names)))
    return np.asarray((picked[:, :, None] == np.arange(len(names))).sum(axis=1)[:, place])


def interval_of(value: float, drawn: Array) -> Estimate:
    """Percentile interval; the value itself bounds both sides, as it does in a Wilson interval at 0 of n."""
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


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
    prepared = frame.assign(status=true_status(frame), cell=frame["attack"])
    tables = [(prepared, aggregate(frame))]
    if is_shared(frame):
        tables.append((prepared.assign(attack=ALL_ATTACKS), aggregate(frame, across_attacks=True)))
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
                    record |= _estimates(rows, part, rule) if len(part) else {}
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
    points = members[["asr_report", "clean_accuracy_report"]].to_numpy(dtype=float)
    found = {"hypervolume": hypervolume(points), "box": hypervolume_box(points, before)}
    drawn: Mapping[str, Array] = {}
    if (counted := _counted(rows, members)) is not None:
        asr, accuracy = resample(counted)
        drawn = {"hypervolume": areas(asr, accuracy), "box": box_areas(asr, accuracy, before)}
    record: dict[str, Any] = {}
    for key, value in found.items():
        one = interval_of(value, drawn[key]) if key in drawn else Estimate(value, value, value)
        record |= {f"{key}_{rule}": one.value, f"{key}_{rule}_low": one.low, f"{key}_{rule}_high": one.high}
    return record


def _counted(rows: pd.DataFrame, members: pd.DataFrame) -> Counted | None:
    """Report-half counts of the members' cells; None where the rows do not tell the number of images."""
    first = members.iloc[0]
    own = rows[rows["trial"].isin(members["trial"]) & (rows["role"].fillna("search") == "search")]
    for key in GROUP:
        own = own[own[key] == first[key]]
    own = own[own["status"] != "backdoor_not_implanted"]
    counts = ["n_triggered_report", "n_clean_report"]
    if own[["asr_report", "clean_accuracy_report", *counts]].isna().any(axis=None):
        return None
    values = ["asr_report", "clean_accuracy_report", *counts]
    wide = own.astype(dict.fromkeys(values, "float64")).pivot(index="trial", columns=list(_CELL), values=values)
    wide = wide.loc[members["trial"]]
    if wide.isna().any(axis=None):
        return None
    n_triggered, n_clean = (wide[name].iloc[0].to_numpy(dtype=float) for name in counts)
    asr, accuracy = (wide[name].to_numpy(dtype=float) for name in ("asr_report", "clean_accuracy_report"))
    seeds, own_seeds = (
        wide["asr_report"].columns.get_level_values(name).to_numpy(dtype=np.int64) for name in _CELL[:2]
    )
    attacks = wide["asr_report"].columns.get_level_values("cell").to_numpy(dtype=object)
    return Counted(asr, accuracy, n_triggered, n_clean, seeds, own_seeds, attacks, parse_rule(str(first["aggregate"])))
