"""The repairs of a study beside each other as a table of a paper has them: pure functions of ledger rows.

A repair is a baseline, or the published point of a search: nothing here was chosen with the ASR at hand, so all values
are those of the whole test set. What a search found is told by its front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from study.results.intervals import Counted, Estimate, difference
from study.results.outcomes import NO_BACKDOOR, REMOVED_ASR, outcome_of
from study.results.rows import PLACE, with_fixed_settings, without_beside

# What makes two rows runs on the same victim by the same defender, so that their difference counts.
PAIR = ("seed", "defense_seed", "victim")
WORKS = ("ok", "abstained")


@dataclass(frozen=True)
class Repair:
    """What the runs of one repair came to.

    Args:
        label: the defense's name in the study.
        gone: runs after which the backdoor is gone: ASR of at most `outcomes.REMOVED_ASR` in a model that works.
        runs: of victims with a backdoor.
        broken: runs that failed, diverged, or left a model that classifies next to nothing; no range counts them.
        asr, clean_accuracy: (least, most) of the others; None where there is none.
        mean_accuracy: their mean.
    """

    label: str
    gone: int
    runs: int
    broken: int
    asr: tuple[float, float] | None
    clean_accuracy: tuple[float, float] | None
    mean_accuracy: float | None


def repairs(frame: pd.DataFrame) -> dict[tuple[str, ...], list[Repair]]:
    """The repairs of each place (see `rows.PLACE`), in the order in which their first runs were finished."""
    rows = _published(frame)
    return {
        tuple(map(str, place)): [
            _repair(str(label), runs) for label, runs in group.groupby("defense_label", sort=False)
        ]
        for place, group in rows.groupby(list(PLACE), sort=False)
    }


@dataclass(frozen=True)
class Less:
    """What one repair has more than another one in the same run.

    Args:
        asr, clean_accuracy: means over the pairs, with 95 % intervals over attackers and test images.
        pairs: runs of both that work, see `Repair`.
        of: pairs there are, with those that a broken run leaves out.
    """

    asr: Estimate
    clean_accuracy: Estimate
    pairs: int
    of: int


def less_others(frame: pd.DataFrame, label: str) -> dict[tuple[str, ...], dict[str, Less]]:
    """One repair less each other in the same run, by place and the other's label.

    Raises:
        ValueError: no run of the study is a repair of that label.
    """
    rows = _published(frame)
    if label not in set(rows["defense_label"]):
        known = ", ".join(map(str, dict.fromkeys(rows["defense_label"])))
        raise ValueError(f"no repair of this study is called {label}; known: {known}")
    found: dict[tuple[str, ...], dict[str, Less]] = {}
    for place, group in rows.groupby(list(PLACE), sort=False):
        of = {str(name): runs.set_index(list(PAIR)) for name, runs in group.groupby("defense_label", sort=False)}
        if (own := of.pop(label, None)) is None:
            continue
        for name, others in of.items():
            both = own.index.intersection(others.index)
            sound = [side.index[side["outcome"].isin(WORKS)] for side in (own.loc[both], others.loc[both])]
            pairs = sound[0].intersection(sound[1])
            if len(pairs) and name != "none":
                less = _difference(own.loc[pairs], others.loc[pairs], len(both))
                found.setdefault(tuple(map(str, place)), {})[name] = less
    return found


def _published(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs of baselines and of published points on victims with a backdoor, with their outcome."""
    rows = without_beside(frame)
    rows = with_fixed_settings(rows.assign(outcome=outcome_of(rows)), PAIR)
    return rows[(rows["role"] != "control") & (rows["outcome"] != NO_BACKDOOR)]


def _repair(label: str, runs: pd.DataFrame) -> Repair:
    works = runs[runs["outcome"].isin(WORKS)]
    asr, accuracy = works["asr"].astype(float), works["clean_accuracy"].astype(float)
    return Repair(
        label=label,
        gone=int((asr <= REMOVED_ASR).sum()),
        runs=len(runs),
        broken=len(runs) - len(works),
        asr=(asr.min(), asr.max()) if len(works) else None,
        clean_accuracy=(accuracy.min(), accuracy.max()) if len(works) else None,
        mean_accuracy=accuracy.mean() if len(works) else None,
    )


def _difference(own: pd.DataFrame, others: pd.DataFrame, of: int) -> Less:
    """The one less the other; rows in the same order of pairs."""
    sides = [own, others]
    asr, accuracy = (np.array([side[name].astype(float) for side in sides]) for name in ("asr", "clean_accuracy"))
    counts = [own[name].to_numpy(dtype=np.float64) for name in ("n_triggered", "n_clean")]
    seeds = own.index.get_level_values("seed").to_numpy(dtype=np.int64)
    counted = Counted(asr, accuracy, counts[0], counts[1], seeds)
    return Less(difference(counted, "asr"), difference(counted, "accuracy"), len(own), of)
