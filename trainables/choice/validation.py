"""The candidate that costs least validation accuracy among those that moved the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainables.choice.base import CANDIDATES, Attempt, Candidate, Choice, Rule, Suspect, register
from trainables.settings import NonNegative


@register("validation")
@dataclass(frozen=True)
class Validation(Rule):
    """Least drop of validation accuracy under a displacement target.

    Without the target the rule would choose the repair that does least, and no repair at all does nothing best. Clean
    images do not say whether a backdoor is there: a model that keeps it may validate best of all.

    Args:
        displacement_share: how far the weights must have gone, as a share of their own length, >= 0.
    """

    tries: ClassVar[Literal["nothing", "model", "copies"]] = "model"

    displacement_share: NonNegative = 0.3

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        before, looked = suspect.before()
        tried = [suspect.attempt(candidate) for candidate in candidates]
        work = sum((one.work for one in tried), looked)
        table = tuple(described(one) for one in tried)
        far = [one for one in tried if one.movement is not None and self._far(one)]
        if not far:
            reason = f"no candidate moved the weights by {self.displacement_share:g} of their length"
            return Choice(self.name, None, (reason,), work, table=table)
        # Few images make many ties; of equals the one that moved most is the likelier to have removed something.
        best = max(far, key=lambda one: (one.right, one.movement.displacement_share if one.movement else 0.0))
        reasons = (
            f"validation accuracy {best.accuracy:.3f} of {best.images} images (before: {before:.3f}), the highest of "
            f"{len(far)} candidates that moved the weights by at least {self.displacement_share:g} of their length",
            "clean images do not say whether a backdoor is gone",
        )
        return Choice(self.name, best.candidate, reasons, work, best, table)

    def _far(self, one: Attempt) -> bool:
        return one.movement is not None and one.movement.displacement_share >= self.displacement_share


def described(one: Attempt) -> dict[str, object]:
    """What an attempt shows its defender, as cells of a table."""
    seen = one.movement
    return {
        "candidate": one.candidate.label,
        "validation_accuracy": one.accuracy,
        "loss_rise": None if seen is None else seen.loss_rise,
        "displacement_share": None if seen is None else seen.displacement_share,
        "moved": one.moved,
        "diverged": one.diverged,
        "steps": one.work.steps,
    }
