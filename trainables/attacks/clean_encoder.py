"""No attack on an encoder: SimCLR and the user's head. The control that BadEncoder is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.attacks.base import Implanted, PoisonedSamples, register
from trainables.attacks.encoders import EncoderAttack
from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@register("clean_encoder")
@dataclass(frozen=True)
class CleanEncoder(EncoderAttack):
    """An honest encoder under a head, measured with an empty trigger: its ASR is the natural false-target rate.

    ``knn_accuracy`` among the trigger's facts says what the encoder is worth, see `simclr.knn_accuracy`.
    """

    implants_backdoor: ClassVar[bool] = False

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        encoder = self.clean_encoder(train, trainer)
        found = self.worth(encoder, train, trainer)
        if self.tune == "classifier":
            model = self.clean_classifier(train, trainer)
        else:
            model = encoder
            self.train_head(model, train, trainer, tune=self.tune)
        return Implanted(model, OverlayTrigger(train.image_size, knn_accuracy=found), PoisonedSamples.none(train))
