"""Conventional fine-tuning on clean data, of the whole model or a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.models.classifier import Classifier, Head
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer, OptimizerName, Schedule, refresh_statistics
from trainables.training.trainer import Trainer

# Those that train something; `FineTuning` alone also knows a control that does not.
SCOPES = ("all", "classifier", "last_block+classifier", "bn_only")
CONTROL = "bn_statistics"


@register("ft")
@dataclass(frozen=True)
class FineTuning(Defense):
    """Minimise cross-entropy on clean data under one learning rate, constant or decaying.

    Unlike super-fine-tuning the rate never climbs; unlike fine-pruning nothing is pruned first. What the literature
    calls "fine-tuning does not work" is mostly ``scope="classifier"``.

    Args:
        lr: learning rate, > 0. The paper's comparison uses the attacker's own (supplement, Figure 14).
        steps: optimiser steps, >= 0. BackdoorBench: 100 epochs of 2,500 images, which are 1,000.
        schedule: ``constant``, or ``cosine`` to 0 over the actual number of steps.
        scope: what is trained: ``all``, ``classifier`` (all that stands behind the encoder, on vectors computed once,
            without augmentation), ``last_block+classifier``, ``bn_only``, or ``bn_statistics``: no weight, but one
            forward pass over the clean images renews the running statistics. That is the control for attacks that live
            in these (`handcrafted`): what it removes, no fine-tuning may claim. Batch normalisation outside the scope
            is frozen.
        momentum, weight_decay: of the optimiser.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        optimizer: what updates the weights.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    plain_loss = True
    replaced: ClassVar[Mapping[str, str]] = {"epochs": "lengths count in optimiser steps: give steps"}

    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    schedule: Literal["constant", "cosine"] = "cosine"
    scope: Literal["all", "classifier", "last_block+classifier", "bn_only", "bn_statistics"] = "all"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    optimizer: OptimizerName = "sgd"
    augment: bool = True

    def lr_at(self) -> Schedule:
        """Learning rate over the run."""
        return schedules.constant(self.lr) if self.schedule == "constant" else schedules.cosine(self.lr, self.steps)

    def needs(self) -> frozenset[str]:
        return parts_of(self.scope)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        if self.scope == CONTROL:
            refresh_statistics(model, assets.train.images, counters=trainer.counters)
            return Repair(model)
        batch = images_per_step(self.batch_size, len(assets.train))
        optimizer = Optimizer(self.optimizer, self.momentum, self.weight_decay)
        if self.scope == "classifier":
            history = trainer.fit_head(
                model,
                assets.train,
                steps=self.steps,
                lr_at=self.lr_at(),
                batch_size=batch,
                optimizer=optimizer,
            )
            return Repair(model, history=history)
        history = trainer.fit(
            model,
            assets.train,
            steps=self.steps,
            lr_at=self.lr_at(),
            batch_size=batch,
            optimizer=optimizer,
            augmentation=trainer.augmentation() if self.augment else None,
            trainable=in_scope(model, self.scope),
        )
        return Repair(model, history=history)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        if self.scope == CONTROL:
            return Counters(forward_samples=n_owned if self.steps else 0)
        if self.scope == "classifier":
            return Counters(steps=self.steps, forward_samples=n_owned if self.steps else 0)
        return training_work(self.steps, images_per_step(self.batch_size, n_owned), n_owned)


def parts_of(scope: str) -> frozenset[str]:
    """What a scope needs of a model, see `Defense.needs`."""
    if scope.startswith("bn_"):
        return frozenset({"batch_norm"})
    return frozenset({"classifier": {"head"}, "last_block+classifier": {"head", "last_block"}}.get(scope, ()))


def in_scope(model: Classifier, scope: str) -> list[nn.Parameter]:
    """The parameters that a scope trains."""
    match scope:
        case "all":
            return list(model.parameters())
        case "classifier":
            return list(Head(model).parameters())
        case "last_block+classifier":
            return [*model.last_block.parameters(), *model.neck.parameters(), *Head(model).parameters()]
        case "bn_only":
            found: list[nn.Parameter | Tensor] = []
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    found.extend(module.parameters())
            if not found:
                raise ValueError("scope bn_only needs a model with batch normalisation")
            return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]
        case _:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
