"""No attack on an encoder: SimCLR and the user's head. The control that BadEncoder is read against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainables.attacks.base import Implanted, PoisonedSamples, register
from trainables.attacks.encoders import EncoderAttack
from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer


@register("clean_encoder")
@dataclass(frozen=True)
class CleanEncoder(EncoderAttack):
    """An honest encoder under a head, measured with an empty trigger: its ASR is the natural false-target rate.

    ``knn_accuracy`` among the trigger's facts says what the encoder is worth, see `simclr.knn_accuracy`.
    """

    implants_backdoor: ClassVar[bool] = False

    @property
    def asks_classifier(self) -> bool:
        return self.tune == "classifier"

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        n, own = len(labels), Counters(forward_samples=len(labels))  # what the encoder is worth
        if not self.asks_classifier:
            own += self.head_work(n, self.tune)
        return sum(self.shared_work(labels, recipe, n_upstream).values(), own)

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        encoder = self.clean_encoder(train, trainer)
        found = self.worth(encoder, train, trainer)
        if self.asks_classifier:
            model = self.clean_classifier(train, trainer)
        else:
            model = encoder
            self.train_head(model, train, trainer, tune=self.tune)
        return Implanted(model, OverlayTrigger(train.image_size, knn_accuracy=found), PoisonedSamples.none(train))
