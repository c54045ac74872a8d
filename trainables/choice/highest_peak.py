"""The highest peak that validation accuracy allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from trainables.choice.base import CANDIDATES, Candidate, Choice, Rule, Suspect, register
from trainables.choice.validation import described
from trainables.settings import Share


@register("highest_peak")
@dataclass(frozen=True)
class HighestPeak(Rule):
    """As strong as validation accuracy allows: the highest ``lr_max1``, and of equals the longest schedule.

    Args:
        drop: validation accuracy that may be lost, in [0, 1]; at least one image.
    """

    tries: ClassVar[Literal["nothing", "model", "copies"]] = "model"

    drop: Share = 0.05

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        before, looked = suspect.before()
        tried = [suspect.attempt(candidate) for candidate in candidates]
        work = sum((one.work for one in tried), looked)
        table = tuple(described(one) for one in tried)
        images = len(suspect.images.validation)
        most = 100 * max(self.drop, 1 / images)
        allowed = [one for one in tried if not one.diverged and allows(one.accuracy, before, self.drop, images)]
        if not allowed:
            reason = f"every candidate loses more than {most:.3g} points of validation accuracy"
            return Choice(self.name, None, (reason,), work, table=table)
        best = max(allowed, key=lambda one: strength(one.candidate))
        reasons = (
            f"the highest peak at which validation accuracy ({best.accuracy:.3f} of {images} images, before: "
            f"{before:.3f}) falls by at most {most:.3g} points",
            "clean images do not say whether a backdoor is gone",
        )
        return Choice(self.name, best.candidate, reasons, work, best, table)


def allows(after: float, before: float, drop: float, images: int) -> bool:
    """Whether an accuracy over ``images`` fell by at most ``drop``, or by one image where that is more."""
    return after >= before - max(drop, 1 / images) - 1e-9


def strength(candidate: Candidate) -> tuple[float, float]:
    """Orders candidates by their highest rate, then by their length; those of other defenses by the same words."""
    settings = candidate.settings
    peak = max((float(value) for key, value in settings.items() if key.startswith("lr")), default=0.0)
    return peak, float(settings.get("iterations", settings.get("steps", 0)))
