"""Adversarial neuron pruning (Wu & Wang 2021, arXiv:2110.14430)."""

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
    prune_by_masks,
    require_batch_norm,
    require_validation,
    validation_passes,
)
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, Share, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer


@register("anp")
@dataclass(frozen=True)
class AdversarialNeuronPruning(Defense):
    """Learn which channels an adversary of the *neurons* could exploit, and prune those.

    Masks m in [0, 1] on all BatchNorm channels are trained to keep the clean loss low while the worst noise on scales
    and shifts is present: min over m of alpha CE(m) + (1 - alpha) max over noise of CE(m, noise). Unlike `rnp` nothing
    is unlearned first; unlike `fp` the order of pruning is not that of the activations. No weight is tuned.

    Args:
        eps: bound of the relative noise on scales and shifts, >= 0.
        steps: sign-ascent steps of size eps / steps, from uniform noise in (-eps, eps); 0 leaves that noise.
        alpha: weight of the clean loss, in [0, 1].
        lr: learning rate of the masks (SGD), > 0. The paper's code has 0.2 with batches of 128, BackdoorBench 0.01 with
            256.
        momentum: of the masks' SGD, in [0, 1).
        iterations: mask updates, >= 0.
        clip_noise: keep the noise within eps; public code lets it reach 2 eps, and so does the default.
        threshold: prune masks at or below it, in [0, 1); None: the largest that the validation set admits.
        max_threshold: end of the sweep 0, 0.05, ..., in [0, 1): untouched channels have 1; used where ``threshold`` is
            None.
        acc_tol: largest drop of validation accuracy in that sweep, in [0, 1).
        tolerance: that drop is ``relative`` to the accuracy before, or in ``points``.
        bn_mode: ``train`` learns the masks on batch statistics (public code), ``eval`` on the running ones.
        batch_size: images per update.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData

    eps: NonNegative = 0.4
    steps: CountOrZero = 1
    alpha: Share = 0.2
    lr: Positive = 0.01
    momentum: ShareBelowOne = 0.9
    iterations: CountOrZero = 2000
    clip_noise: bool = False
    threshold: ShareBelowOne | None = None
    max_threshold: ShareBelowOne = 0.9
    acc_tol: ShareBelowOne = 0.1
    tolerance: ToleranceUnit = "relative"
    bn_mode: Literal["train", "eval"] = "train"
    batch_size: Count = 256
    augment: bool = True

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_batch_norm(model, self.name)
        if self.threshold is None:
            require_validation(n_validation, self.name)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), len(assets.validation))
        original = copy.deepcopy(model.state_dict())
        masked = MaskedModel(model, batch_statistics=self.bn_mode == "train")
        generator = trainer.generator("noise")

        def loss(_model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            noise = self.worst_noise(masked, images, labels, generator)
            trainer.counters.forward_samples += (1 + self.steps) * len(labels)
            trainer.counters.backward_samples += (1 + self.steps) * len(labels)
            under_attack = functional.cross_entropy(masked(images, noise), labels)
            undisturbed = functional.cross_entropy(masked(images), labels)
            return self.alpha * undisturbed + (1.0 - self.alpha) * under_attack

        history = trainer.fit(
            masked,
            assets.train,
            steps=self.iterations,
            lr_at=schedules.constant(self.lr),
            batch_size=self.batch_size,
            optimizer=Optimizer("sgd", self.momentum, 0.0),
            augmentation=trainer.augmentation() if self.augment else None,
            loss=loss,
            trainable=[masked.mask],
            after_step=masked.clip,
        )
        model.load_state_dict(original)  # the running statistics moved with the noise
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
            notes={"mask_mean": float(masks.mean()), "mask_min": float(masks.min())},
        )

    def worst_noise(self, masked: MaskedModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Noise (2, C) on scales and shifts that raises the loss of the batch; within 2 eps, or eps if clipped."""
        size = (2, len(masked.mask))
        noise = ((2.0 * torch.rand(size, generator=generator) - 1.0) * self.eps).to(images.device)
        for _ in range(self.steps):
            noise.requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(masked(images, noise), labels), noise)
            noise = noise.detach() + self.eps / self.steps * gradient.sign()
            if self.clip_noise:
                noise = noise.clamp(-self.eps, self.eps)
        return noise

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        work = training_work(self.iterations, self.batch_size, n_owned)
        passes = 2 + self.steps  # the ascent's, under attack, undisturbed
        work.forward_samples *= passes
        work.backward_samples *= passes
        work.forward_samples += validation_passes(self.threshold, self.max_threshold) * n_validation
        return work
