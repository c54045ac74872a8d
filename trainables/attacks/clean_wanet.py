"""No attack, under WaNet's augmentation: the control that a WaNet victim is read against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainables.attacks.base import Attack, Implanted, PoisonedSamples, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet
from trainables.training.geometry import Draws, Moves, Resampling
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@register("clean_wanet")
@dataclass(frozen=True)
class CleanWaNet(Attack):
    """Honest training that moves its batches as WaNet does, measured with an empty trigger.

    `clean` trains with the data set's own crop and flip. Read against that, a victim that was trained otherwise would
    be credited, or charged, with what the augmentation does to accuracy.

    Args:
        augmentation, resampling: as WaNet's.
    """

    implants_backdoor: ClassVar[bool] = False
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"resampling": {"augmentation": "sample"}}

    augmentation: Draws = "none"
    resampling: Resampling = "nearest"

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        moves, stream = Moves(self.augmentation, self.resampling), trainer.generator("wanet", "augmentation")

        @torch.no_grad()
        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return moves(images, trainer.flip, stream), labels

        model = trainer.train_from_scratch(train, recipe, augmentation=None, transform=transform)
        return Implanted(model, OverlayTrigger(train.image_size), PoisonedSamples.none(train))
