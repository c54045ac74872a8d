"""Plain fine-tuning from the published peak: the rival that every schedule must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.choice.base import CANDIDATES, FT_PEAK, Candidate, Choice, Rule, Suspect, register


@register("ft_peak")
@dataclass(frozen=True)
class FtPeak(Rule):
    """Fine-tuning from 0.1 along a cosine, over as many steps as the published schedule; it looks at nothing."""

    defenses: ClassVar[tuple[str, ...]] = (FT_PEAK.defense,)

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        return Choice(self.name, FT_PEAK, ("fine-tuning from the published peak, without a schedule of its own",))
