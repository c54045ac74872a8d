"""How a setting that was scored on several attacks comes to one number: ``search.aggregate``.

``mean``: over all cells. ``worst``: the attack that it does worst on. ``cvar:LEVEL``: the mean of the worst share
LEVEL of the attacks (conditional value at risk, Rockafellar and Uryasev 2000), which lies between the two. For the
last two an attack counts by its mean over its seeds: luck of one seed is no property of an attack. ASR and clean
accuracy are taken each by itself, so their worst attacks may be two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST_QUARTER = 0.25  # level of ``cvar`` where none is given
Array = NDArray[np.float64]


@dataclass(frozen=True)
class OverAttacks:
    """One rule.

    Args:
        name: ``mean``, ``worst`` or ``cvar``.
        level: share of the attacks that ``cvar`` takes, in (0, 1].
    """

    name: str = "mean"
    level: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}:{self.level:g}" if self.name == "cvar" else self.name

    @property
    def in_words(self) -> str:
        """For headings."""
        if self.name == "cvar":
            return f"mean of the worst {100 * self.level:g} %"
        return "worst case" if self.name == "worst" else "means"

    def shares(self, rank: Any, count: Any) -> Array:
        """Share in the result of the attack at each rank, from the worst (0), among ``count``; of all they sum to 1.

        Of a level that cuts through an attack, the last one counts in part.
        """
        count = np.asarray(count, dtype=float)
        taken = {"mean": count, "worst": np.ones_like(count), "cvar": self.level * count}[self.name]
        return np.asarray(np.clip(taken - np.asarray(rank, dtype=float), 0.0, 1.0) / taken)

    def over(self, attacks: Sequence[str], values: Sequence[float], *, high_is_worst: bool) -> float:
        """The number for one setting.

        Args:
            attacks, values: of its cells.
            high_is_worst: as for an ASR.

        Raises:
            ValueError: no cells.
        """
        if not values:
            raise ValueError("no cells to take together; give the value of at least one")
        if self.name == "mean":
            return math.fsum(values) / len(values)
        own: dict[str, list[float]] = {}
        for attack, value in zip(attacks, values, strict=True):
            own.setdefault(attack, []).append(value)
        ordered = sorted((math.fsum(each) / len(each) for each in own.values()), reverse=high_is_worst)
        return math.fsum(self.shares(range(len(ordered)), len(ordered)) * np.array(ordered))


MEAN, WORST_CASE = OverAttacks(), OverAttacks("worst")


def parse_rule(text: str | None) -> OverAttacks:
    """The rule that a spec or a row names; none named: the mean (ValueError: what is allowed)."""
    if text in (None, "mean"):
        return MEAN
    if text == "worst":
        return WORST_CASE
    name, _, level = str(text).partition(":")
    try:
        share = float(level or WORST_QUARTER)
    except ValueError:
        share = math.nan
    if name != "cvar" or not 0 < share <= 1:
        raise ValueError(
            f"must be mean, worst, or cvar:LEVEL with the share of the worst attacks in (0, 1], such as cvar:0.25, got "
            f"{text!r}"
        )
    return OverAttacks("cvar", share)
