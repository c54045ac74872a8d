"""Reconstructive neuron pruning (Li et al. 2023, arXiv:2305.14876)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.defenses.pruning import (
    MaskedModel,
    ToleranceUnit,
    prune_closed,
    require_batch_norm,
    require_validation,
    validation_passes,
)
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, InnerShare, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer


@register("rnp")
@dataclass(frozen=True)
class ReconstructiveNeuronPruning(Defense):
    """Unlearn the clean task, relearn it with channel masks alone, and prune the channels that the relearning closes.

    What clean data can make a model forget is the clean task; the channels that recovery then has to shut are held to
    carry the backdoor. Unlike `anp` there is no noise, and it needs some hundred images for some tens of epochs.

    Args:
        unlearn_lr: learning rate of the ascent on the clean loss (SGD on all weights), > 0; a tenth in its second half.
        unlearn_steps: most optimiser steps of the ascent, >= 0. Published: 20 epochs of 500 images in batches of 128,
            which are 80; and as many for the recovery.
        clean_threshold: the ascent ends after the pass over the clean set whose accuracy is at or below it, in (0, 1).
            With few classes guessing alone is right more often, so it counts as at least 1.5 / K.
        grad_clip: largest gradient norm of the ascent, or None; without it the loss runs away. (BackdoorBench clips
            before the backward pass, which does nothing.)
        recover_lr: learning rate of the masks (SGD), > 0.
        recover_steps: optimiser steps of the recovery, >= 0; with 0 no mask moves and nothing is pruned.
        alpha: factor on the recovery's loss, > 0; the same as a factor on ``recover_lr``, kept for its published value.
        momentum: of the SGD of ascent and recovery, in [0, 1).
        weight_decay: of the ascent, >= 0.
        threshold: masks at or below it are closed, and nothing else is pruned, in [0, 1). BackdoorBench: 0.7.
        acc_tol: largest drop of validation accuracy, in [0, 1); above 0 it allows one validation image at least. Of the
            closed channels, in the order in which they closed, as many go as it admits. None: all of them, without
            a look at validation images.
        tolerance: that drop is ``relative`` to the accuracy before, or in ``points``.
        bn_mode: ``train`` unlearns and recovers on batch statistics (public code), ``eval`` on the running ones.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True
    plan_is_exact: ClassVar[bool] = False
    # The accuracy is looked at after whole passes.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"clean_threshold": {"unlearn_steps": 12}}
    replaced: ClassVar[Mapping[str, str]] = {
        "unlearn_epochs": "lengths count in optimiser steps: give unlearn_steps",
        "recover_epochs": "lengths count in optimiser steps: give recover_steps",
        "max_threshold": "nothing above threshold is pruned",
    }

    unlearn_lr: Positive = 0.01
    unlearn_steps: CountOrZero = published_steps(epochs=20, images=500, batch_size=128)
    clean_threshold: InnerShare = 0.2
    grad_clip: Positive | None = 20.0
    recover_lr: Positive = 0.2
    recover_steps: CountOrZero = published_steps(epochs=20, images=500, batch_size=128)
    alpha: Positive = 0.2
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    threshold: ShareBelowOne = 0.7
    acc_tol: ShareBelowOne | None = 0.1
    tolerance: ToleranceUnit = "relative"
    bn_mode: Literal["train", "eval"] = "train"
    batch_size: Count = 128
    augment: bool = True

    def needs(self) -> frozenset[str]:
        return frozenset({"batch_norm"})

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_batch_norm(model, self.name)
        if self.acc_tol is not None:
            require_validation(n_validation, self.name)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), len(assets.validation))
        original = copy.deepcopy(model.state_dict())
        n, batch = len(assets.train), images_per_step(self.batch_size, len(assets.train))
        augmentation = trainer.augmentation() if self.augment else None
        ascent = Ascent(-(-n // batch), max(self.clean_threshold, 1.5 / trainer.num_classes))
        history = trainer.fit(
            model,
            assets.train,
            purpose="unlearn",
            steps=self.unlearn_steps,
            lr_at=self.unlearn_lr_at,
            batch_size=batch,
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=augmentation,
            loss=ascent,
            until=ascent.reached,
            grad_clip=self.grad_clip,
            bn_mode=self.bn_mode,
        )
        notes = {
            "unlearn_passes": len(ascent.accuracies),
            "unlearned_accuracy": ascent.accuracies[-1] if ascent.accuracies else None,
            "statistics_moved": _statistics_moved(model, original),
        }
        masked = MaskedModel(model, batch_statistics=self.bn_mode == "train")
        recovery = trainer.fit(
            masked,
            assets.train,
            purpose="recover",
            steps=self.recover_steps,
            lr_at=schedules.constant(self.recover_lr),
            batch_size=batch,
            optimizer=Optimizer("sgd", self.momentum, 0.0),
            augmentation=augmentation,
            loss=replayable(lambda model, images, labels: self.alpha * functional.cross_entropy(model(images), labels)),
            trainable=[masked.mask],
            after_step=masked.clip,
        )
        history.lr += recovery.lr
        history.loss += recovery.loss
        model.load_state_dict(original)  # what is pruned is the model as it came
        return prune_closed(
            model,
            masked,
            assets.validation,
            trainer,
            threshold=self.threshold,
            acc_tol=self.acc_tol,
            unit=self.tolerance,
            history=history,
            notes=notes,
        )

    def unlearn_lr_at(self, step: int) -> float:
        """Rate of the ascent: a tenth in its second half, published as after 10 of 20 epochs."""
        return self.unlearn_lr if 2 * step < self.unlearn_steps else self.unlearn_lr / 10

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        steps = self.unlearn_steps + self.recover_steps
        work = training_work(steps, images_per_step(self.batch_size, n_owned), n_owned)
        work.forward_samples += validation_passes(self.acc_tol) * n_validation
        return work


class Ascent:
    """Minus cross-entropy as a loss, with the accuracy of every finished pass on the batches it was taken on.

    Args:
        steps_per_pass: >= 1.
        goal: `reached` says True at the end of a pass whose accuracy is at or below it.
    """

    def __init__(self, steps_per_pass: int, goal: float) -> None:
        self.steps_per_pass, self.goal = steps_per_pass, goal
        self.accuracies: list[float] = []
        self._shares: list[Tensor] = []

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        self._shares.append((logits.detach().argmax(1) == labels).double().mean())
        return -functional.cross_entropy(logits, labels)

    def reached(self, step: int) -> bool:
        """Whether the goal is reached after ``step``; asked after every step, it knows at the end of each pass."""
        if (step + 1) % self.steps_per_pass:
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
