"""A tuned setting against the published setting of the same defense, on the same models: pure functions of rows.

Nothing here compares one defense with another: for that, steps, compute, batches, seeds and knowledge would have to be
equal (`study.results.equal_rules`). Settings are chosen on the search half; the values compared are the report half's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pandas as pd

from study.results.intervals import LEVEL, counted_settings, difference
from study.results.pareto import pick_label
from study.results.rows import ALL_ATTACKS

TUNED = pick_label(0.01)  # the pick that stands for a search: it may lose 1 point of clean accuracy
KNEE = "knee"
# Picks in the order in which they are asked whether they beat the published setting on the search half.
PICK_ORDER = (TUNED, pick_label(0.005), pick_label(0.02), pick_label(0.05), "max_der", KNEE)

# Verdicts on a tuned setting: what it does in ASR and in clean accuracy, against the published one.
BETTER = "better"  # less ASR and more accuracy
NO_WORSE = "no_worse"  # equal in one, better in the other
LESS_ASR = "less_asr"  # ... for less accuracy
MORE_ACCURACY = "more_accuracy"  # ... for more ASR
EQUAL = "equal"  # another setting with the same two rates
WORSE = "worse"  # no better in either, worse in one: chosen on the search half, it did not keep its lead
# Verdicts where there is nothing to compare.
SAME = "same"  # the search picked the published setting itself
NO_PICK = "no_pick"  # no setting of the front loses so little accuracy
NO_RESULT = "no_result"  # no setting has a full result
PUBLISHED_FAILED = "published_failed"  # its model collapsed, its training diverged, or a run of it is missing
NOT_PUBLISHED = "not_published"  # the published setting was not run

_EXACT = 1e-12


@dataclass(frozen=True)
class Verdict:
    """One search, of ``defense`` (its label): its published setting, its tuned one, and what can be said of the two.

    ``published``, ``tuned`` (the pick TUNED) and ``pick`` (the one that the verdict is about) are rows of
    ``settings.aggregate``; None where there is none. ``label`` names ``pick`` (one of PICK_ORDER). ``aggregate``: how
    attacks were taken together, see `study.spec.over_attacks`.
    """

    defense: str
    verdict: str
    published: pd.Series[Any] | None
    tuned: pd.Series[Any] | None
    pick: pd.Series[Any] | None
    label: str = TUNED
    aggregate: str = "mean"


def verdicts(settings: pd.DataFrame, members: pd.DataFrame, shared: pd.DataFrame | None = None) -> list[Verdict]:
    """A verdict per searched defense, in the order of their names.

    Args:
        settings: rows of ``settings.aggregate`` of one data set, model and attack.
        members: rows of ``fronts.fronts`` of the same.
        shared: rows of ``fronts`` of all attacks together, where searches were over all of them: the setting is then
            chosen there, and the values compared are those of this attack alone.
    """
    searched = settings[settings["role"] == "search"]
    found = []
    for defense, group in searched.groupby("defense_label", sort=True):
        front = members[members["defense_label"] == defense]
        if shared is not None and (shared["defense_label"] == defense).any():
            front = shared[shared["defense_label"] == defense]
        one = _verdict(str(defense), group, front)
        found.append(dataclasses.replace(one, aggregate=str(group["aggregate"].iloc[0])))
    return found


def is_clear(one: Verdict, rows: pd.DataFrame, comparisons: int = 1) -> bool:
    """Whether the tuned setting is told from the published one in every number in which they differ.

    By the interval of the difference over the attackers, each of which had both settings, and over test images; at a
    level at which 95 % of studies with so many ``comparisons`` are free of a false one (Bonferroni). Of one attacker
    nothing is clear: both settings were chosen and measured on its models, and how a training goes is luck, too.

    Args:
        rows: of the ledger, those of the verdict's data set and model at least.
    """
    if one.published is None or one.pick is None:
        return False
    counted = counted_settings(rows, pd.DataFrame([one.published, one.pick]))
    if counted is None or len(set(counted.seeds.tolist())) < 2:
        return False
    level = 100 - (100 - LEVEL) / comparisons
    found = [difference(counted, rate, level) for rate in ("asr", "accuracy")]
    return all(not one.low <= 0.0 <= one.high for one in found if abs(one.value) > _EXACT)


def shared_members(members: pd.DataFrame) -> pd.DataFrame:
    """Fronts of the searches that were over all attacks at once."""
    return members[members["attack"] == ALL_ATTACKS]


def compare_points(published: pd.Series[Any], pick: pd.Series[Any], half: str = "report") -> str:
    """One of BETTER, NO_WORSE, LESS_ASR, MORE_ACCURACY, EQUAL, WORSE, by the rates of a half of the test set."""
    asr = float(published[f"asr_{half}"] - pick[f"asr_{half}"])
    accuracy = float(pick[f"clean_accuracy_{half}"] - published[f"clean_accuracy_{half}"])
    signs = tuple(0 if abs(gain) <= _EXACT else 1 if gain > 0 else -1 for gain in (asr, accuracy))
    match signs:
        case (1, 1):
            return BETTER
        case (1, 0) | (0, 1):
            return NO_WORSE
        case (1, -1):
            return LESS_ASR
        case (-1, 1):
            return MORE_ACCURACY
        case (0, 0):
            return EQUAL
        case _:
            return WORSE


def _verdict(defense: str, group: pd.DataFrame, front: pd.DataFrame) -> Verdict:
    complete = group[group["complete"]]
    published = _published(group)
    picks = {label: one for label in PICK_ORDER if (one := _picked(complete, front, label)) is not None}
    tuned = picks.get(TUNED)
    if not len(complete):
        return Verdict(defense, NO_RESULT, published, None, None)
    if published is None:
        return Verdict(defense, NOT_PUBLISHED, None, tuned, tuned)
    if not published["complete"] or published["collapsed"] or published["status"] == "diverged":
        return Verdict(defense, PUBLISHED_FAILED, published, tuned, tuned)
    others = {label: one for label, one in picks.items() if one["trial"] != published["trial"]}
    # Which pick the verdict is about is decided on the search half: the first that is better than the published setting
    # there, else the one that stands for the search. Chosen for how it looks on the report half, one of six would often
    # be better by chance.
    seen = {label: compare_points(published, one, "search") for label, one in others.items()}
    better = [label for wanted in (BETTER, NO_WORSE) for label, verdict in seen.items() if verdict == wanted]
    if not better and tuned is None:
        return Verdict(defense, NO_PICK, published, None, None)
    if not better and TUNED not in others:
        return Verdict(defense, SAME, published, tuned, tuned)
    label = better[0] if better else TUNED
    return Verdict(defense, compare_points(published, others[label]), published, tuned, others[label], label)


def _published(group: pd.DataFrame) -> pd.Series[Any] | None:
    """The published setting: with a full result if there is one such."""
    own = group[group["published"].astype(bool)].sort_values("complete", ascending=False, kind="stable")
    return own.iloc[0] if len(own) else None


def _picked(complete: pd.DataFrame, front: pd.DataFrame, label: str) -> pd.Series[Any] | None:
    """The setting of a front that was picked as ``label``, as measured in ``complete``; a diverged one is no pick."""
    chosen = (
        front["is_knee"].astype(bool) if label == KNEE else front["picks"].map(lambda t: label in str(t).split(";"))
    )
    own = complete[complete["trial"].isin(front.loc[chosen, "trial"])]
    return own.iloc[0] if len(own) and own.iloc[0]["status"] != "diverged" else None
