"""No attack: the control. Its model says what a trigger does without a backdoor (ASR-base)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.attacks.base import Attack, Implanted, PoisonedSamples, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@register("clean")
@dataclass(frozen=True)
class Clean(Attack):
    """Honest training on clean data, measured with an empty trigger: its ASR is the natural false-target rate."""

    implants_backdoor: ClassVar[bool] = False

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        model = trainer.train_from_scratch(train, recipe)
        return Implanted(model, OverlayTrigger(train.image_size), PoisonedSamples.none(train))
