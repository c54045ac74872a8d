"""Adversarial weight masking (Chai & Chen 2022, arXiv:2207.04497)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from trainables.data.images import ImageSet
from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, published_steps, register
from trainables.defenses.perturbation import PerRound, pixel_scale, rounds, seek_perturbation, within
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, Share
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer

# Of the public code: its loop leaves out the last, smaller batch of 2,000 images.
ROUND = published_steps(epochs=5, images=2000 // 128 * 128, batch_size=128)


@register("awm")
@dataclass(frozen=True)
class AdversarialWeightMasking(Defense):
    """Mask the weights that a universal perturbation needs: min over masks of alpha CE(x) + (1 - alpha) CE(x + delta).

    Every single weight of every convolution gets a factor in [0, 1], from 1, under a small L1 penalty; no weight is
    tuned and no channel is cut as a whole (`anp`), which is why few clean images suffice. Each round searches delta
    anew, (3, H, W), added to every image: ``inner_steps`` of gradient ascent on the loss of the masked model on clean
    images; then the masks are trained for ``round_steps`` against it. Published: 20 rounds of 75 and 75 steps (five
    passes over 2,000 images in batches of 128, the last one left out).

    Delta is in pixels, [0, 1] images, and not clipped to the image range; the published step is for normalised images
    and is multiplied by std^2, which makes it the same step. Running statistics stay as they are. (The public code
    searches away from the model's predictions, and bounds delta at the end alone.)

    Args:
        lr: learning rate of Adam on the masks, > 0.
        steps: optimiser steps in all, >= 0.
        round_steps: optimiser steps against one perturbation, >= 1; then it is sought anew.
        inner_steps: steps of the ascent on delta, >= 1.
        alpha: weight of the clean loss, in [0, 1].
        gamma: weight of the masks' L1 norm (their sum), >= 0.
        bound: largest mean |delta| over its values, in pixels, > 0. The published bound of 1000 on the L1 norm of
            32-pixel images is 1000 / 3072.
        inner_lr: step of the ascent on delta, > 0, in units of normalised images.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True
    replaced: ClassVar[Mapping[str, str]] = {
        "rounds": "lengths count in optimiser steps: give steps (in all) and round_steps (against one perturbation)",
        "epochs": "lengths count in optimiser steps: give round_steps (against one perturbation)",
    }
    # A few of the published steps end well within the bound.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"bound": {"inner_lr": 1000.0}}

    lr: Positive = 0.01
    steps: CountOrZero = 20 * ROUND
    round_steps: Count = ROUND
    inner_steps: Count = ROUND
    alpha: Share = 0.9
    gamma: NonNegative = 1e-8
    bound: Positive = 1000 / 3072
    inner_lr: Positive = 10.0
    batch_size: Count = 128
    augment: bool = True

    def needs(self) -> frozenset[str]:
        return frozenset({"convolutions"})

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        masked, data = MaskedConvolutions(model), assets.train
        perturbation = PerRound(
            self.round_steps, lambda round_: self.find_perturbation(masked, data, trainer, round_=round_)
        )

        def loss(_: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            trainer.counters.forward_samples += len(images)
            trainer.counters.backward_samples += len(images)
            logits = masked(torch.cat([images, images + perturbation.next()]))
            clean, attacked = (functional.cross_entropy(half, labels) for half in logits.split(len(images)))
            return self.alpha * clean + (1.0 - self.alpha) * attacked + self.gamma * masked.total()

        history = trainer.fit(
            masked,
            data,
            steps=self.steps,
            lr_at=schedules.constant(self.lr),
            batch_size=images_per_step(self.batch_size, len(data)),
            optimizer=Optimizer("adam", weight_decay=0.0),
            augmentation=trainer.augmentation() if self.augment else None,
            trainable=list(masked.masks),
            loss=loss,
            after_step=masked.clip,
        )
        masked.apply_masks()
        mean = float(masked.total().detach()) / sum(mask.numel() for mask in masked.masks)
        return Repair(model.eval(), history=history, notes={"mask_mean": mean})

    def find_perturbation(self, masked: nn.Module, data: ImageSet, trainer: Trainer, *, round_: int) -> Tensor:
        """The perturbation of a round, (1, 3, H, W): away from the labels."""

        def loss(images: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
            return -functional.cross_entropy(masked(images + delta), labels)

        assert isinstance(masked, MaskedConvolutions)
        return seek_perturbation(
            masked,
            data,
            trainer,
            loss=loss,
            rate=self.inner_lr * pixel_scale(masked.model),
            bounded=lambda delta: within(delta, delta.abs().mean(), self.bound),
            steps=self.inner_steps,
            batch_size=images_per_step(self.batch_size, len(data)),
            augment=self.augment,
            round_=round_,
        )

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        batch = images_per_step(self.batch_size, n_owned)
        sought = rounds(self.steps, self.round_steps) * self.inner_steps
        return Counters(
            steps=self.steps,
            forward_samples=(2 * self.steps + sought) * batch,
            backward_samples=2 * self.steps * batch,
            input_backward_samples=sought * batch,
        )


class MaskedConvolutions(nn.Module):
    """A model every convolution weight of which has a factor of its own, 1 at first."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        self.masks = nn.ParameterList(torch.ones_like(model.get_parameter(name)) for name in self.names)

    def weights(self) -> dict[str, Tensor]:
        """The masked weights by parameter name."""
        return {name: mask * self.model.get_parameter(name) for name, mask in zip(self.names, self.masks, strict=True)}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of float images."""
        logits: Tensor = functional_call(self.model, self.weights(), (images,))
        return logits

    def total(self) -> Tensor:
        """Sum of all masks: their L1 norm, as none is negative."""
        return torch.stack([mask.sum() for mask in self.masks]).sum()

    @torch.no_grad()
    def clip(self, _step: int = 0) -> None:
        """Masks back into [0, 1]."""
        for mask in self.masks:
            mask.clamp_(0.0, 1.0)

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Multiply them into the model's own weights."""
        for name, weight in self.weights().items():
            self.model.get_parameter(name).copy_(weight)
