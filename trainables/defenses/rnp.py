"""Reconstructive neuron pruning (Li et al. 2023, arXiv:2305.14876)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import CleanData, Defense, Repair, register, training_work
from trainables.defenses.pruning import (
    MaskedModel,
    Tolerance,
    ToleranceUnit,
    batch_norms,
    prune_by_masks,
    require_batch_norm,
    require_validation,
    validation_passes,
)
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, InnerShare, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer, Schedule
from trainables.training.trainer import Trainer

MILESTONES = (10, 20)  # epochs of the unlearning after which its rate falls to a tenth


@register("rnp")
@dataclass(frozen=True)
class ReconstructiveNeuronPruning(Defense):
    """Unlearn the clean task, relearn it with channel masks alone, and prune the channels that the relearning closes.

    What clean data can make a model forget is the clean task; the channels that recovery then has to shut are held to
    carry the backdoor. Unlike `anp` there is no noise, and it needs some hundred images for some tens of epochs.

    Args:
        unlearn_lr: learning rate of the ascent on the clean loss (SGD on all weights), > 0; a tenth after 10 epochs.
        unlearn_epochs: most passes of the ascent, >= 0.
        clean_threshold: the ascent ends after the epoch whose accuracy is at or below it, in (0, 1). With few classes
            guessing alone is right more often, so it counts as at least 1.5 / K.
        grad_clip: largest gradient norm of the ascent, or None; without it the loss runs away. (BackdoorBench clips
            before the backward pass, which does nothing.)
        recover_lr: learning rate of the masks (SGD), > 0.
        recover_epochs: passes of the recovery, >= 0; with 0 no mask moves and nothing is pruned.
        alpha: factor on the recovery's loss, > 0; the same as a factor on ``recover_lr``, kept for its published value.
        momentum: of the SGD of ascent and recovery, in [0, 1).
        weight_decay: of the ascent, >= 0.
        threshold: prune masks at or below it, in [0, 1) (BackdoorBench: 0.7); None: the largest that the validation set
            admits.
        max_threshold: end of the sweep 0, 0.05, ..., in [0, 1); used where ``threshold`` is None.
        acc_tol: largest drop of validation accuracy in that sweep, in [0, 1).
        tolerance: that drop is ``relative`` to the accuracy before, or in ``points``.
        bn_mode: ``train`` unlearns and recovers on batch statistics (public code), ``eval`` on the running ones.
        batch_size: images per step.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    plan_is_exact: ClassVar[bool] = False

    unlearn_lr: Positive = 0.01
    unlearn_epochs: CountOrZero = 20
    clean_threshold: InnerShare = 0.2
    grad_clip: Positive | None = 20.0
    recover_lr: Positive = 0.2
    recover_epochs: CountOrZero = 20
    alpha: Positive = 0.2
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    threshold: ShareBelowOne | None = None
    max_threshold: ShareBelowOne = 0.9
    acc_tol: ShareBelowOne = 0.1
    tolerance: ToleranceUnit = "relative"
    bn_mode: Literal["train", "eval"] = "train"
    batch_size: Count = 128
    augment: bool = True

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_batch_norm(model, self.name)
        if self.threshold is None:
            require_validation(n_validation, self.name)

    def steps_per_epoch(self, n: int) -> int:
        """Optimiser steps of one pass over ``n`` images."""
        return -(-n // self.batch_size)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), len(assets.validation))
        original = copy.deepcopy(model.state_dict())
        n = len(assets.train)
        augmentation = trainer.augmentation() if self.augment else None
        ascent = Ascent(self.steps_per_epoch(n), max(self.clean_threshold, 1.5 / trainer.num_classes))
        history = trainer.fit(
            model,
            assets.train,
            purpose="unlearn",
            steps=self.unlearn_epochs * self.steps_per_epoch(n),
            lr_at=self.unlearn_lr_at(n),
            batch_size=self.batch_size,
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=augmentation,
            loss=ascent,
            until=ascent.reached,
            grad_clip=self.grad_clip,
            bn_mode=self.bn_mode,
        )
        notes = {
            "unlearn_epochs": len(ascent.accuracies),
            "unlearned_accuracy": ascent.accuracies[-1] if ascent.accuracies else None,
            "statistics_moved": _statistics_moved(model, original),
        }
        masked = MaskedModel(model, batch_statistics=self.bn_mode == "train")
        recovery = trainer.fit(
            masked,
            assets.train,
            purpose="recover",
            steps=self.recover_epochs * self.steps_per_epoch(n),
            lr_at=schedules.constant(self.recover_lr),
            batch_size=self.batch_size,
            optimizer=Optimizer("sgd", self.momentum, 0.0),
            augmentation=augmentation,
            loss=lambda model, images, labels: self.alpha * functional.cross_entropy(model(images), labels),
            trainable=[masked.mask],
            after_step=masked.clip,
        )
        history.lr += recovery.lr
        history.loss += recovery.loss
        model.load_state_dict(original)  # what is pruned is the model as it came
        masks = masked.mask.detach()
        return prune_by_masks(
            model,
            masks,
            assets.validation,
            trainer,
            threshold=self.threshold,
            max_threshold=self.max_threshold,
            tolerance=Tolerance(self.acc_tol, self.tolerance),
            history=history,
            notes={**notes, "mask_mean": float(masks.mean()), "mask_min": float(masks.min())},
        )

    def unlearn_lr_at(self, n: int) -> Schedule:
        """Rate of the ascent on a clean set of ``n``: a tenth from each milestone on."""
        per_epoch = self.steps_per_epoch(n)
        return lambda step: self.unlearn_lr * 0.1 ** sum(step >= epoch * per_epoch for epoch in MILESTONES)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        epochs = self.unlearn_epochs + self.recover_epochs
        work = training_work(epochs * self.steps_per_epoch(n_owned), self.batch_size, n_owned)
        work.forward_samples += validation_passes(self.threshold, self.max_threshold) * n_validation
        return work


class Ascent:
    """Minus cross-entropy as a loss, with the accuracy of every finished epoch on the batches it was taken on.

    Args:
        steps_per_epoch: >= 1.
        goal: `reached` says True at the end of an epoch whose accuracy is at or below it.
    """

    def __init__(self, steps_per_epoch: int, goal: float) -> None:
        self.steps_per_epoch, self.goal = steps_per_epoch, goal
        self.accuracies: list[float] = []
        self._shares: list[Tensor] = []

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        self._shares.append((logits.detach().argmax(1) == labels).double().mean())
        return -functional.cross_entropy(logits, labels)

    def reached(self, step: int) -> bool:
        """Whether the goal is reached after ``step``; asked after every step, it knows at the end of each epoch."""
        if (step + 1) % self.steps_per_epoch:
            return False
        self.accuracies.append(float(torch.stack(self._shares).mean()))
        self._shares.clear()
        return self.accuracies[-1] <= self.goal


def _statistics_moved(model: nn.Module, original: dict[str, Tensor]) -> float:
    """Mean change of the running means, in their own standard deviations; 0 without batch statistics."""
    moved = []
    for name, norm in batch_norms(model).items():
        if norm.running_mean is not None:
            deviation = (original[f"{name}.running_var"] + norm.eps).sqrt()
            moved.append(((norm.running_mean - original[f"{name}.running_mean"]) / deviation).abs())
    return float(torch.cat(moved).mean()) if moved else 0.0
