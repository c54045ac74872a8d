"""How an attacker trains a victim: the presets of the literature and a quick one for small data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainables.settings import NonNegative, NormalisedBatch, Positive, ShareBelowOne, check_settings
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer, OptimizerName, Schedule, training_work


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimiser, schedule and length of a training from random weights.

    Args:
        epochs: passes over the training set.
        batch_size: images per step.
        lr: peak learning rate.
        schedule: of the rate: ``cosine`` to 0, ``constant``, or ``one_cycle``.
        optimizer: ``sgd`` (with momentum), ``nesterov``, ``adam`` or ``adamw``.
        momentum, weight_decay: of the optimiser; momentum is the first beta of Adam's.
    """

    epochs: Positive
    batch_size: NormalisedBatch
    lr: Positive
    schedule: Literal["cosine", "constant", "one_cycle"] = "cosine"
    optimizer: OptimizerName = "sgd"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4

    def __post_init__(self) -> None:
        check_settings(self)

    def steps(self, n: int) -> int:
        """Optimiser steps on ``n`` training images: epochs * ceil(n / batch), at least 1."""
        return max(1, round(self.epochs * -(-n // self.batch_size)))

    def work(self, n: int) -> Counters:
        """Work of a whole training on ``n`` images."""
        return training_work(self.steps(n), self.batch_size, n)

    def lr_at(self, n: int) -> Schedule:
        """Schedule of the rate on ``n`` training images."""
        match self.schedule:
            case "cosine":
                return schedules.cosine(self.lr, self.steps(n))
            case "one_cycle":
                return schedules.one_cycle(self.lr, self.steps(n))
            case "constant":
                return schedules.constant(self.lr)

    def updater(self) -> Optimizer:
        """What updates the weights."""
        return Optimizer(self.optimizer, self.momentum, self.weight_decay)


RECIPES: dict[str, TrainingRecipe] = {
    # BackdoorBench's defaults (its cosine period follows the number of epochs here).
    "bb": TrainingRecipe(epochs=100, batch_size=128, lr=0.01),
    # Sha et al., supplement A.2; momentum, weight decay and schedule are not stated there.
    "sha": TrainingRecipe(epochs=200, batch_size=256, lr=1e-3, schedule="constant"),
    # A quarter of bb's passes, an eighth of its steps. One cycle to a rate far above what a constant one would bear
    # (Smith & Topin 2017, arXiv:1708.07120): 0.1 per 128 images, scaled linearly with the batch (Goyal et al. 2017,
    # arXiv:1706.02677), warmed up, and down to nothing at the end, where most of the accuracy comes. Not a batch of
    # 512: half the steps at the same work per image would leave small sets too few. The loss stays plain cross-entropy:
    # label smoothing might buy some tenths of a point, but a model that was never sure of anything is another victim to
    # defenses that look at losses and logits.
    "fast": TrainingRecipe(epochs=24, batch_size=256, lr=0.2, schedule="one_cycle", optimizer="nesterov"),
    # A victim in minutes, made for `airbench_cnn`. The rate is that of Jordan (2024, arXiv:2404.00498) per image: 1.5
    # with momentum 0.85, for the mean loss of 1,024 images, is rate / (1 - momentum) = 10 for so many, and 0.125 with
    # momentum 0.9 is 1.25 for 128. An eighth of that batch: more steps from a small set, and no slower on a CPU (10,000
    # photographs, width 32, 8 epochs, n = 1: clean accuracy 0.773, with 256 and 0.25 0.752). The decay is everybody's,
    # not the source's 1.33e-3 for the mean loss, with which nothing was gained (width 32, all of CIFAR-10, n = 1 each:
    # 0.865, with 5e-4 0.870). On 5,000 training images held out from 45,000 (n = 1 each, so half a point is luck) 5e-4
    # came to 0.872, with half the rate to 0.868, with 256 images at 0.25 to 0.872, with a crop of 2 pixels for 4 to
    # 0.875, and with that at twice the rate to 0.873. 16 epochs in place of 9.9, for want of what else is done
    # there (see the model), chosen for the time that they take. One cycle in place of a triangle: up in 0.3 instead of
    # 0.23 of the steps. The loss is plain as in `fast`, where the source smooths labels by 0.2.
    "sprint": TrainingRecipe(epochs=16, batch_size=128, lr=0.125, schedule="one_cycle", optimizer="nesterov"),
    # Small data on a CPU: few epochs at BackdoorBench's peak rate.
    "quick": TrainingRecipe(epochs=30, batch_size=64, lr=0.01, schedule="one_cycle"),
    # The same passes for `vit_small`, whose loss SGD at that rate leaves far too high: AdamW (Loshchilov & Hutter 2017,
    # arXiv:1711.05101) at its usual rate, with the decay of ViT-Ti (Touvron et al. 2020, arXiv:2012.12877).
    "adamw": TrainingRecipe(
        epochs=30, batch_size=64, lr=1e-3, schedule="one_cycle", optimizer="adamw", weight_decay=0.05
    ),
}
