"""FST: feature-shift tuning (Min et al. 2023, arXiv:2310.01875)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.defenses.fine_tune import fine_tune
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Schedule
from trainables.training.trainer import Trainer


@register("fst")
@dataclass(frozen=True)
class FeatureShiftTuning(Defense):
    """Fine-tune everything while the head is pushed away from what it was, so that the features must shift.

    The head is re-initialised, the loss is CE + alpha <w, w0> with w0 the backdoored head's weight, and after each step
    w is scaled back to the length of w0 (else the loss would fall forever by growing w along -w0). With ``alpha=0``,
    ``reinit=False`` and ``fix_norm=False`` it is `ft` (scope all) bit by bit.

    Args:
        alpha: strength of the push, >= 0.
        lr: learning rate, > 0.
        steps: optimiser steps, >= 0. With 0 nothing is touched, the head included. The paper: 10 epochs of 1,000 images
            in batches of 128, which are 80.
        reinit: start the head anew, weight and bias uniform in +-1/sqrt(d), d the number of features.
        fix_norm: keep the length of w after every step.
        schedule: ``cosine`` to 0 over the actual steps (the paper steps it per epoch), or ``constant``.
        momentum: of SGD.
        weight_decay: of SGD; the paper decays nothing.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {"epochs": "lengths count in optimiser steps: give steps"}

    alpha: NonNegative = 0.2
    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=10, images=1000, batch_size=128)
    reinit: bool = True
    fix_norm: bool = True
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 0.0
    batch_size: Count = 128
    augment: bool = True

    def lr_at(self) -> Schedule:
        """Learning rate over the run."""
        return schedules.constant(self.lr) if self.schedule == "constant" else schedules.cosine(self.lr, self.steps)

    def needs(self) -> frozenset[str]:
        return frozenset({"head"})

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        head = model.classifier
        original = head.weight.detach().clone()
        length = original.norm()
        if self.reinit:
            restart(head, trainer.generator("weights", "fst"))

        @replayable
        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return functional.cross_entropy(model(images), labels) + self.alpha * (head.weight * original).sum()

        @torch.no_grad()
        def rescale(_step: int) -> None:
            head.weight.mul_(length / head.weight.norm())

        history = fine_tune(
            self,
            model,
            assets,
            trainer,
            loss=loss,
            after_step=rescale if self.fix_norm else None,
        )
        return Repair(model, history=history, notes={"head_cosine": _cosine(head.weight, original)})

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.steps, images_per_step(self.batch_size, n_owned), n_owned)


@torch.no_grad()
def restart(head: nn.Linear, generator: torch.Generator) -> None:
    """Draw weight and bias anew, uniform in +-1/sqrt(in_features)."""
    bound = head.in_features**-0.5
    for parameter in head.parameters():
        drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
        parameter.copy_(drawn.mul_(2 * bound).sub_(bound))


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one.detach().flatten(), other.flatten(), dim=0))
