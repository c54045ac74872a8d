"""What a method trains with: device, random streams, augmentation, counters, fresh models. Never any test data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainables import metrics, training
from trainables.data import ImageSet, to_float
from trainables.models.classifier import Classifier
from trainables.recipes import TrainingRecipe
from trainables.seeding import generator_for
from trainables.training import Augmentation, Counters, History


@dataclass
class Trainer:
    """The bench that attacks and defenses work at.

    Args:
        device: where models and data are.
        seed: of this run; all randomness of a method comes from `generator`.
        num_classes: K.
        flip: whether a horizontal flip keeps the labels of this data set.
        padding: pixels of the random crop.
        new_model: a freshly initialised model (on the CPU) from a generator.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        counters: exact work done so far.
    """

    device: torch.device
    seed: int
    num_classes: int
    flip: bool
    padding: int
    new_model: Callable[[torch.Generator], Classifier]
    precision: str = "auto"
    counters: Counters = field(default_factory=Counters)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A private random stream (CPU); the same seed and purpose give the same one."""
        return generator_for(self.seed, *purpose)

    def fresh_model(self, *purpose: str | int) -> Classifier:
        """A newly initialised model on the device."""
        return self.new_model(self.generator("weights", *purpose)).to(self.device)

    def augmentation(self) -> Augmentation:
        """The task's random crop, and a flip where the data set allows it; attacker and defender use the same."""
        return Augmentation(self.padding, self.flip)

    def fit(self, model: nn.Module, data: ImageSet, *, purpose: str = "fit", **settings: Any) -> History:
        """`training.fit` with this bench's random stream, precision and counters."""
        settings.setdefault("counters", self.counters)
        return training.fit(
            model, data, generator=self.generator("batches", purpose), precision=self.precision, **settings
        )

    def train_from_scratch(
        self, train: ImageSet, recipe: TrainingRecipe, *, purpose: str | None = None, **changes: Any
    ) -> Classifier:
        """A new model trained by ``recipe``.

        Args:
            purpose: of a second model beside the run's own (a surrogate): other initial weights, other batches.
            changes: settings of `training.fit` that replace the recipe's or the task's.
        """
        model = self.fresh_model() if purpose is None else self.fresh_model(purpose)
        settings: dict[str, Any] = {
            "steps": recipe.steps(len(train)),
            "lr_at": recipe.lr_at(len(train)),
            "batch_size": recipe.batch_size,
            "optimizer": recipe.updater(),
            "augmentation": self.augmentation(),
        }
        self.fit(model, train, purpose=purpose or "fit", **(settings | changes))
        return model

    def accuracy(self, model: Classifier, data: ImageSet) -> float:
        """Share of ``data`` that the model classifies as labelled, in eval mode, counted."""
        predictions = metrics.predict(model, data.images, precision=self.precision, counters=self.counters)
        return float((predictions == data.labels).double().mean())

    @torch.no_grad()
    def features(self, model: Classifier, images: Tensor, batch_size: int = 1024) -> Tensor:
        """Penultimate features, float32 (N, D), of uint8 images; eval mode, no augmentation, counted."""
        model.eval()
        parts = []
        with training.autocast(images.device, self.precision):
            for batch in images.split(batch_size):
                parts.append(model.features(to_float(batch)).float())
                self.counters.forward_samples += len(batch)
        return torch.cat(parts)
