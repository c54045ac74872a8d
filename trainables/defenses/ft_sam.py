"""FT-SAM: fine-tuning with sharpness-aware steps (Zhu et al. 2023, arXiv:2304.11823; SAM: Foret et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, published_steps, register
from trainables.defenses.fine_tune import fine_tune
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Schedule
from trainables.training.sharpness import climb
from trainables.training.trainer import Trainer

# BackdoorBench's cosine falls over so many calls and is called once per batch, so its rate rises again for as many.
SWING = 100


@register("ft_sam")
@dataclass(frozen=True)
class FineTuningSAM(Defense):
    """Fine-tune with the gradient taken where the loss nearby is worst, so that weights of a sharp backdoor must move.

    Each step is fine-tuning's (`ft`, scope all), but its gradient comes from w + e with e = rho w^2 g / || |w| g ||
    (adaptive: weights move in proportion to their size) or e = rho g / ||g||. With ``rho=0`` and
    ``smoothing=0`` it is `ft` bit by bit, at twice the cost.

    Args:
        rho: length of the move, >= 0, in units of || e / |w| || (adaptive) or ||e||. BackdoorBench: 2 on CIFAR-10, 8
            on GTSRB and Tiny ImageNet.
        adaptive: whether the move is scaled by the weights (Kwon et al. 2021).
        lr: learning rate, > 0.
        steps: optimiser steps, >= 0, each of two passes. BackdoorBench: 100 epochs of 2,500 images, which are 1,000.
        schedule: ``cosine`` to 0 over the actual steps, ``constant``, or ``swing``: a cosine that falls and rises again
            every 200 steps, what BackdoorBench's scheduler does when called per batch (its published numbers may owe
            something to that).
        smoothing: label smoothing, in [0, 1). BackdoorBench: 0.1 on CIFAR-10, else 0.
        momentum, weight_decay: of SGD.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {"epochs": "lengths count in optimiser steps: give steps"}

    rho: NonNegative = 2.0
    adaptive: bool = True
    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    schedule: Literal["cosine", "constant", "swing"] = "cosine"
    smoothing: ShareBelowOne = 0.1
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augment: bool = True

    def lr_at(self) -> Schedule:
        """Learning rate over the run."""
        match self.schedule:
            case "constant":
                return schedules.constant(self.lr)
            case "cosine":
                return schedules.cosine(self.lr, self.steps)
            case "swing":
                return schedules.cosine(self.lr, self.steps, t_max=SWING)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        history = fine_tune(
            self,
            model,
            assets,
            trainer,
            loss=self.loss,
            perturb=partial(climb, rho=self.rho, adaptive=self.adaptive),
        )
        return Repair(model, history=history)

    @replayable
    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy with smoothed labels."""
        return functional.cross_entropy(model(images), labels, label_smoothing=self.smoothing)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        samples = 2 * self.steps * images_per_step(self.batch_size, n_owned)  # every step goes forward and back twice
        return Counters(steps=self.steps, forward_samples=samples, backward_samples=samples)
