"""Adversarial neuron pruning (Wu & Wang 2021, arXiv:2110.14430)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, register, training_work
from trainables.defenses.pruning import (
    MaskedModel,
    ToleranceUnit,
    prune_closed,
    require_batch_norm,
    require_validation,
    validation_passes,
)
from trainables.machine.transfer import sent_ahead
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
        threshold: masks at or below it are closed, and nothing else is pruned, in [0, 1). The paper: 0.2;
            BackdoorBench sweeps up to 0.9.
        acc_tol: largest drop of validation accuracy, in [0, 1); above 0 it allows one validation image at least. Of the
            closed channels, in the order in which they closed, as many go as it admits. None: all of them, without
            a look at validation images.
        tolerance: that drop is ``relative`` to the accuracy before, or in ``points``.
        bn_mode: ``train`` learns the masks on batch statistics (public code), ``eval`` on the running ones.
        batch_size: images per update, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True
    replaced: ClassVar[Mapping[str, str]] = {"max_threshold": "nothing above threshold is pruned"}

    eps: NonNegative = 0.4
    steps: CountOrZero = 1
    alpha: Share = 0.2
    lr: Positive = 0.2
    momentum: ShareBelowOne = 0.9
    iterations: CountOrZero = 2000
    clip_noise: bool = False
    threshold: ShareBelowOne = 0.2
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
            batch_size=images_per_step(self.batch_size, len(assets.train)),
            optimizer=Optimizer("sgd", self.momentum, 0.0),
            augmentation=trainer.augmentation() if self.augment else None,
            loss=loss,
            trainable=[masked.mask],
            after_step=masked.clip,
        )
        model.load_state_dict(original)  # the running statistics moved with the noise
        return prune_closed(
            model,
            masked,
            assets.validation,
            trainer,
            threshold=self.threshold,
            acc_tol=self.acc_tol,
            unit=self.tolerance,
            history=history,
            notes={},
        )

    def worst_noise(self, masked: MaskedModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Noise (2, C) on scales and shifts that raises the loss of the batch; within 2 eps, or eps if clipped."""
        size = (2, len(masked.mask))
        noise = sent_ahead((2.0 * torch.rand(size, generator=generator) - 1.0) * self.eps, images.device)
        for _ in range(self.steps):
            noise.requires_grad_()
            (gradient,) = torch.autograd.grad(functional.cross_entropy(masked(images, noise), labels), noise)
            noise = noise.detach() + self.eps / self.steps * gradient.sign()
            if self.clip_noise:
                noise = noise.clamp(-self.eps, self.eps)
        return noise

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        work = training_work(self.iterations, images_per_step(self.batch_size, n_owned), n_owned)
        passes = 2 + self.steps  # the ascent's, under attack, undisturbed
        work.forward_samples *= passes
        work.backward_samples *= passes
        work.forward_samples += validation_passes(self.acc_tol) * n_validation
        return work
