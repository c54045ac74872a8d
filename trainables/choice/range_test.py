"""A learning-rate range test on the clean images (Smith 2017, arXiv:1506.01186), and the peak that it finds."""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor, nn

from trainables.choice.base import CANDIDATES, PUBLISHED, Candidate, Choice, Rule, Suspect, register
from trainables.defenses.base import images_per_step
from trainables.settings import Count, Positive, ShareBelowOne
from trainables.training.loop import DivergedError, cross_entropy

# Where a schedule's peak may lie: the range that searches have.
LOWEST_PEAK, HIGHEST_PEAK = 1e-2, 2.0


@register("range_test")
@dataclass(frozen=True)
class RangeTest(Rule):
    """The published schedule with its peak at the rate that a copy of the model no longer bears.

    The rate climbs exponentially over a short training on the clean images; the peak is where the smoothed loss first
    exceeds ``factor`` times the least it had been. It needs one short run, whatever the number of candidates.

    Args:
        steps: of the test.
        low, high: rates at its ends, > 0.
        factor: on the least smoothed loss, > 0.
        smoothing: weight of the past in the running mean of the loss, in [0, 1).
        batch_size: images per step, at most a quarter of the training part.
    """

    steps: Count = 200
    low: Positive = 1e-5
    high: Positive = 10.0
    factor: Positive = 4.0
    smoothing: ShareBelowOne = 0.9
    batch_size: Count = 256

    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        bench, train, losses = suspect.bench(), suspect.images.train, list[Tensor]()

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            value = cross_entropy(model, images, labels)
            losses.append(value.detach())
            return value

        with suppress(DivergedError):  # at the end of the test that is what is looked for
            bench.fit(
                copy.deepcopy(suspect.model),
                train,
                purpose="range-test",
                steps=self.steps,
                lr_at=self.rate,
                batch_size=images_per_step(self.batch_size, len(train)),
                augmentation=bench.augmentation(),
                loss=loss,
                until=lambda _step: not bool(losses[-1].isfinite()),
            )
        found = self.ceiling([float(value) for value in losses])
        peak = min(max(found or HIGHEST_PEAK, LOWEST_PEAK), HIGHEST_PEAK)
        said = (
            f"the smoothed training loss exceeds {self.factor:g} times its minimum at a rate of {found:.3g}"
            if found
            else f"the training loss never exceeds {self.factor:g} times its minimum up to a rate of {self.high:g}"
        )
        settings = {**PUBLISHED.settings, "lr_max1": peak}
        table = ({"ceiling": found, "lr_max1": peak},)
        reasons = (f"{said}; the published schedule with its peak at {peak:.3g}",)
        return Choice(self.name, Candidate("super_ft", settings), reasons, bench.counters, table=table)

    def rate(self, step: int) -> float:
        """Learning rate of a step of the test."""
        return float(self.low * (self.high / self.low) ** (step / max(1, self.steps - 1)))

    def ceiling(self, losses: list[float]) -> float | None:
        """The rate at which the smoothed loss exceeds ``factor`` times its least value so far; None if it never does.

        The running mean is corrected for its start at 0. A loss that is not finite exceeds everything.
        """
        mean, least = 0.0, math.inf
        for step, value in enumerate(losses):
            if not math.isfinite(value):
                return self.rate(step)
            mean = self.smoothing * mean + (1.0 - self.smoothing) * value
            smoothed = mean / (1.0 - self.smoothing ** (step + 1))
            if smoothed > self.factor * least:
                return self.rate(step)
            least = min(least, smoothed)
        return None
