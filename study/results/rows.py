"""The rows of a ledger as a table: which of them are of what, and what each says of itself (``ledger.to_frame``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from study.plan.jobs import CONFIRM
from study.record.cost import epochs
from study.results.scores import NOT_IMPLANTED, victim_of, without_backdoor
from study.spec.over_attacks import OverAttacks, parse_rule

# What a search, or a baseline, is called within a study; the label is the defense's name there.
GROUP = ("combination", "dataset", "model", "attack", "defense_label")
PLACE = GROUP[:-1]  # what a section of the report is about
ALL_ATTACKS = "all"
REPEAT = "repeat"  # role of searches that were made once more
BESIDE = (REPEAT, CONFIRM)  # roles of what stands beside the study itself


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


def backdoored(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows on victims that hold a backdoor: of another nothing can be removed, and nothing comes back."""
    return frame[~holds_no_backdoor(frame)]


def collapsed(frame: pd.DataFrame) -> pd.Series[bool]:
    """Rows whose model predicts next to nothing right any more: their ASR is 0 or 1 by accident."""
    return frame["collapsed"].eq(True).fillna(False).astype(bool)


def with_fixed_settings(table: pd.DataFrame, per: Sequence[str] = ()) -> pd.DataFrame:
    """The rows whose settings nobody searched for: all that are not searched, and the published points of searches.

    A label that a study has as a baseline and searches as well is there once, as the baseline.

    Args:
        table: ledger rows, or any table with GROUP, ``role`` and ``published``.
        per: columns that tell rows of one label apart, beside GROUP.
    """
    keys = [*GROUP, *per]
    baseline = pd.MultiIndex.from_frame(table.loc[table["role"].eq("baseline"), keys])
    twice = pd.MultiIndex.from_frame(table[keys]).isin(baseline)
    searched = table["role"].fillna("search").eq("search")
    return table[~searched | (table["published"].eq(True) & ~twice)]


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


def is_shared(frame: pd.DataFrame) -> bool:
    """Whether settings were scored over several attacks at once (``search.per: all``)."""
    searched = frame[frame["role"].fillna("search") == "search"]
    if not len(searched):
        return False
    # Also where the victims of one attack alone hold a backdoor, so that the others have no row.
    pooled = of_all_attacks(searched)
    meant = searched.loc[pooled, "models"].astype("float64").max()
    return int(searched.groupby("trial")["attack"].nunique().max()) > 1 or bool(meant > searched["seed"].nunique())


def of_all_attacks(rows: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of a search over all attacks: of a sweep, the label begins with the combination."""
    labels = zip(rows["search"].fillna(""), rows["combination"], strict=True)
    found = [str(label).removeprefix(f"{name}/").startswith(f"{ALL_ATTACKS}/") for label, name in labels]
    return pd.Series(found, rows.index, dtype=bool)
