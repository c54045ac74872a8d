"""The published schedule, whatever the model is."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.choice.base import CANDIDATES, PUBLISHED, Candidate, Choice, Rule, Suspect, register


@register("published")
@dataclass(frozen=True)
class Published(Rule):
    """Sha et al.'s own setting (arXiv:2212.09067, supplement A.2); it looks at nothing, and costs nothing."""

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        return Choice(self.name, PUBLISHED, ("the published setting, chosen without a look at the model",))
