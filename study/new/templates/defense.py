"""My defense (AUTHORS YEAR, arXiv:NUMBER): one sentence that says how it repairs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.space import register as register_space
from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, register, training_work
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters
from trainables.training.schedules import constant, cosine
from trainables.training.trainer import Trainer


# The settings: each field is a key of a study (defense.my_defense.lr). Without @dataclass no field would be one.
@register("my_defense")
@dataclass(frozen=True)
class MyDefense(Defense):
    """One line for ``superft list defenses``: shakes the weights, then trains them on clean images.

    Args:
        noise: standard deviation of what is added to each weight tensor, in units of its own, >= 0.
        lr: learning rate of the first half, > 0; the second half falls from it to 0.
        steps: optimiser steps of each half, >= 1.
        batch_size: images per step, >= 1; at most a quarter of the clean set is taken, as every method takes it.
    """

    # What the defender owns, and nothing else is handed over: CleanData (a clean set and a validation set apart from
    # it), PoisonedData (the training set as released), or NoData (the model alone).
    owns: ClassVar[type[CleanData]] = CleanData

    # A field that does nothing at the defaults is named here, with settings beside which it matters:
    # matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tau": {"scope": "bn_only"}}

    noise: float = 0.1
    lr: float = 0.01
    steps: int = 100
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Values that are wrong for every task end here, as ValueError: field, what is allowed, what was given."""
        if self.noise < 0.0:
            raise ValueError(f"noise must be >= 0, got {self.noise}")
        if self.lr <= 0.0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        """``model`` is a copy: change it in place, or make another one by ``trainer.fresh_model("my_defense")``.

        All randomness comes from ``trainer.generator(PURPOSE)``; each purpose is a stream of its own (on the CPU).
        Every fit has a purpose of its own too: two fits of one purpose would draw the same batches in the same order.
        Passes beside ``trainer.fit`` are counted where ``trainer.accuracy`` or ``trainer.features`` make them.
        """
        self.shake(model, trainer.generator("my_defense-noise"))
        batch = images_per_step(self.batch_size, len(assets.train))
        settings = {"steps": self.steps, "batch_size": batch, "augmentation": trainer.augmentation()}
        first = trainer.fit(model, assets.train, purpose="my_defense-first", lr_at=constant(self.lr), **settings)
        trainer.fit(model, assets.train, purpose="my_defense-last", lr_at=cosine(self.lr, self.steps), **settings)
        # Detectors also hand back scores, removed (indices of training samples) or flagged_classes; a defense that
        # found nothing to repair returns its input with status "abstained"; notes hold numbers worth keeping.
        return Repair(model, history=first)

    @torch.no_grad()
    def shake(self, model: Classifier, generator: torch.Generator) -> None:
        for weight in model.parameters():
            if weight.dim() > 1:
                drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
                weight.add_(drawn * self.noise * weight.std())

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        """Exactly the work that `repair` does: steps, samples forward and backward. The cost of a study is told by it.

        A defense that may stop early sets ``plan_is_exact: ClassVar[bool] = False`` and tells the most it can cost.
        """
        return training_work(2 * self.steps, images_per_step(self.batch_size, n_owned), n_owned)


# What a study may tune. Delete this class where there is nothing: the defense is then a baseline, run as it is.
@register_space("my_defense")
class Space:
    """SPACE: each parameter's range or choices, as Optuna distributions. PAPER: the published settings, trial 0.

    PAPER lies within SPACE, may name further fields, and every point of SPACE is a setting that the defense accepts.
    Where the source states another point for some data set: PAPER_FOR = {"gtsrb": {"lr": 0.001}}; PAPER is CIFAR-10's.
    """

    SPACE: ClassVar = {
        "noise": FloatDistribution(0.0, 0.5),
        "lr": FloatDistribution(1e-4, 0.5, log=True),
        "steps": IntDistribution(10, 1000, log=True),
    }
    PAPER: ClassVar = {"noise": 0.1, "lr": 0.01, "steps": 100, "batch_size": 128}
