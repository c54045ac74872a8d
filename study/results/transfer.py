"""The rule `transfer`: the setting that did best on other attacks, from ledgers.

Who uses it must have attacked models himself, so that he could measure ASR there; of the model that he repairs he knows
no more than any other defender.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from search_spaces.space import fingerprint
from study.record.columns import DROPPED_BY
from study.record.ledger import Ledger
from study.results.in_words import settings_of
from study.results.rows import collapsed, true_status
from study.results.scores import MEASURED
from trainables.choice.base import CANDIDATES, RULES, Candidate, Choice, Rule, Suspect, register
from trainables.defenses.base import DEFENSES, PoisonedData
from trainables.registry import Registry, SettingError
from trainables.settings import Share

# Settings whose mean ASR elsewhere differs by no more are equal in it, and accuracy decides.
EQUAL_ASR = 0.01


@dataclass(frozen=True)
class Elsewhere:
    """How a setting did on other attacks: means over the attacks, of means over their runs.

    Args:
        candidate: defense and settings.
        asr, lost: mean ASR after the repair, and clean accuracy lost, fractions.
        worst: ASR on the attack that it did worst on.
        attacks: how many.
    """

    candidate: Candidate
    asr: float
    lost: float
    worst: float
    attacks: int


def best_elsewhere(frame: pd.DataFrame, without: str = "", drop: float = 0.05) -> Elsewhere | None:
    """The setting with the least mean ASR on the attacks of a ledger, among those that lose little accuracy.

    Only settings with a result of every run on all of them are compared: a mean over the easier ones is no fair rival.
    So what was dropped in a race is left out, and what failed on a model. Runs on a victim without a backdoor measure
    nothing; one that diverged or collapsed counts as ASR 1 and accuracy 0, one that abstained left the model as it was.

    Args:
        frame: rows of one or more ledgers, as `Ledger.to_frame` gives them.
        without: an attack to leave out: the one that the choice is for.
        drop: mean clean accuracy that may be lost, in [0, 1]; where every setting loses more, the one that loses least.
    """
    others = frame[(frame["attack"] != without) & (frame["role"].fillna("search") == "search")]
    settings = [_plain(settings_of(row)) for _, row in others.iterrows()]
    keys = [f"{d} {fingerprint(one)}" for d, one in zip(others["defense"], settings, strict=True)]
    status = true_status(others)
    dropped = others[DROPPED_BY].notna() if DROPPED_BY in others else False
    partly = set(pd.Series(keys, others.index)[(status == "failed") | dropped])
    whole = np.array([key not in partly for key in keys], dtype=bool)
    measured = np.flatnonzero(status.isin(MEASURED).to_numpy() & whole)
    if not len(measured):
        return None
    rows = others.iloc[measured]
    lost_all = collapsed(rows) | (status.iloc[measured] == "diverged")
    table = pd.DataFrame(
        {
            "key": [keys[place] for place in measured],
            "row": measured,
            "attack": rows["attack"].to_numpy(),
            "asr": rows["asr"].astype("float64").mask(lost_all, 1.0).to_numpy(),
            "lost": (rows["clean_accuracy_before"].astype("float64") - rows["clean_accuracy"].astype("float64"))
            .mask(lost_all, 1.0)
            .to_numpy(),
        }
    )
    attacks = table["attack"].nunique()
    found = []
    for _, own in table.groupby("key", sort=False):
        each = own.groupby("attack")[["asr", "lost"]].mean()
        if len(each) == attacks:
            place = int(own["row"].iloc[0])
            candidate = Candidate(str(others["defense"].iloc[place]), settings[place])
            means = each.mean()
            found.append(
                Elsewhere(candidate, float(means["asr"]), float(means["lost"]), float(each["asr"].max()), attacks)
            )
    if not found:
        return None
    allowed = [one for one in found if one.lost <= drop + 1e-9] or [min(found, key=lambda one: one.lost)]
    least = min(one.asr for one in allowed)
    return min((one for one in allowed if one.asr <= least + EQUAL_ASR), key=lambda one: one.lost)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a defense takes them: a table holds whole numbers beside missing ones as floats."""
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in settings.items()
    }


@register("transfer")
@dataclass(frozen=True)
class Transfer(Rule):
    """The setting that was best on other attacks, see `best_elsewhere`; it looks at the model not at all.

    Defenses that need the poisoned training set are left out: whoever owns a model and clean images cannot run them.

    Args:
        ledgers: files ``trials.jsonl`` of studies that scored the same settings on several attacks, joined with commas.
        without: an attack to leave out.
        drop: mean clean accuracy that may be lost elsewhere, in [0, 1].
        defense: the only one whose settings are compared; empty: all.
    """

    knows: ClassVar[str] = "transfer"

    defenses: ClassVar[tuple[str, ...]] = ()

    ledgers: str = ""
    without: str = ""
    drop: Share = 0.05
    defense: str = ""

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        files = [Path(text) for text in self.ledgers.split(",") if text]
        if missing := [str(file) for file in files if not file.is_file()] or ([] if files else ["no file was given"]):
            raise SettingError(f"rule.transfer.ledgers must name trials.jsonl of studies: {missing[0]}")
        frame = pd.concat([Ledger.read(file).to_frame() for file in files], ignore_index=True)
        names = [name for name in frame["defense"].dropna().unique() if name in DEFENSES]
        usable = {name for name in names if DEFENSES.get(name).owns is not PoisonedData and self.defense in ("", name)}
        best = best_elsewhere(frame[frame["defense"].isin(usable)], self.without, self.drop)
        if best is None:
            whose = f"of {self.defense} " if self.defense else ""
            return Choice(self.name, None, (f"no setting {whose}in the ledgers was run on all of their attacks",))
        reason = (
            f"on {best.attacks} other attacks it left a mean ASR of {best.asr:.3f} (worst {best.worst:.3f}) for "
            f"{100 * best.lost:.1f} points of clean accuracy"
        )
        return Choice(self.name, best.candidate, (reason, "this model may be unlike those"))


def all_rules() -> Registry[type[Rule]]:
    """Every rule of choice by name, this one included."""
    return RULES
