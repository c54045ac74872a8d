"""Training from scratch on the defender's data at equal compute: what any repair must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.defenses.super_ft import SuperFineTuning
from trainables.models.build import ModelError
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, InnerShare, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer, Schedule
from trainables.training.trainer import Trainer

Arm = Literal["same_schedule", "one_cycle", "long", "reinit"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@register("scratch")
@dataclass(frozen=True)
class Scratch(Defense):
    """Forget everything: random weights, then the same number of steps on the same clean data.

    By construction no backdoor survives, so its ASR is the floor of false triggers, and the question it answers is
    whether a repair is more than relearning. ``reinit`` forgets only the last stages and is the bridge to fine-tuning.

    Args:
        arm: how the new model is trained: ``same_schedule`` (super-FT's), ``one_cycle`` (one rise, over
            ``warm_fraction``, and one fall), ``long`` (cosine over ``long_steps``: the upper reference), ``reinit``
            (super-FT's schedule after re-initialising the last stages).
        lr_max1: peak rate of every arm, > 0; of super-FT's schedule that of phase 1.
        lr_base, lr_max2: base and second peak of super-FT's schedule, > 0; for arms same_schedule and reinit.
        iterations: length of one triangle of it in steps, >= 1; one_cycle too takes 2 * iterations steps.
        warm_fraction: rising share of one_cycle, in (0, 1).
        long_steps: optimiser steps of long, >= 1; as 100 epochs of CIFAR-10's training set.
        reinit_stages: how many of the last stages (and the head) reinit forgets, >= 0 (0: the head alone).
        weight_decay, momentum: of SGD.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    plain_loss = True
    replaced: ClassVar[Mapping[str, str]] = {
        "epochs": "lengths count in optimiser steps: give long_steps",
        "lr": "the peak of every arm is lr_max1",
    }
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "warm_fraction": {"arm": "one_cycle"},
        "long_steps": {"arm": "long"},
        "reinit_stages": {"arm": "reinit"},
    }

    arm: Arm = "same_schedule"
    lr_base: Positive = 3e-4
    lr_max1: Positive = 0.1
    lr_max2: Positive = 1e-3
    iterations: Count = 500
    warm_fraction: InnerShare = 0.3
    long_steps: Count = published_steps(epochs=100, images=50_000, batch_size=256)
    reinit_stages: CountOrZero = 1
    weight_decay: NonNegative = 5e-4
    momentum: ShareBelowOne = 0.9
    batch_size: Count = 256
    augment: bool = True

    def total_steps(self, n: int) -> int:
        """Optimiser steps on a clean set of ``n``."""
        if self.arm == "long":
            return self.long_steps
        return self._cyclic().schedule(n).total_steps

    def lr_at(self, n: int) -> Schedule:
        """Learning rate on a clean set of ``n``."""
        match self.arm:
            case "one_cycle":
                return schedules.one_cycle(self.lr_max1, self.total_steps(n), warm_fraction=self.warm_fraction)
            case "long":
                return schedules.cosine(self.lr_max1, self.total_steps(n))
            case _:
                return self._cyclic().schedule(n)

    def needs(self) -> frozenset[str]:
        return frozenset({"new_model", "stages"} if self.arm == "reinit" else {"new_model"})

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        if self.arm == "reinit" and self.reinit_stages > len(model.stages):
            raise ModelError(
                f"defense.{self.name}.reinit_stages must be at most {len(model.stages)}, the stages of this model, got "
                f"{self.reinit_stages}"
            )

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        fresh = trainer.fresh_model("scratch")
        if self.arm == "reinit":
            _keep_first_stages(fresh, model, forget=self.reinit_stages)
        n = len(assets.train)
        history = trainer.fit(
            fresh,
            assets.train,
            steps=self.total_steps(n),
            lr_at=self.lr_at(n),
            batch_size=images_per_step(self.batch_size, n),
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=trainer.augmentation() if self.augment else None,
        )
        return Repair(fresh, history=history)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.total_steps(n_owned), images_per_step(self.batch_size, n_owned), n_owned)

    def _cyclic(self) -> SuperFineTuning:
        return SuperFineTuning(
            lr_base=self.lr_base,
            lr_max1=self.lr_max1,
            lr_max2=self.lr_max2,
            iterations=self.iterations,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            batch_size=self.batch_size,
        )


def _keep_first_stages(fresh: Classifier, trained: Classifier, *, forget: int) -> None:
    """Copy all but the last ``forget`` stages of ``trained`` into ``fresh``; the head stays fresh.

    The stages are used to images as they were normalised there. Between the last stage and the head a neck may have
    weights; they stay if that stage does.
    """
    kept: list[tuple[nn.Module, nn.Module]] = list(zip(fresh.stages, trained.stages, strict=True))
    kept = kept[: len(kept) - forget] + ([] if forget else [(fresh.neck, trained.neck)])
    for new, old in [(fresh.normalize, trained.normalize), *kept]:
        new.load_state_dict(old.state_dict())
