"""PAM: path-aware minimisation (Min et al. 2024, arXiv:2410.09838), without its inverted triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
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
from trainables.defenses.fine_tune import fine_tune
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Schedule, refresh_statistics
from trainables.training.sharpness import frozen_statistics
from trainables.training.trainer import Trainer

# Beside the distance: at the backdoored weights themselves there is no direction, and nothing moves.
NEAR_ZERO = 1e-12


@register("pam")
@dataclass(frozen=True)
class PathAwareMinimization(Defense):
    """Fine-tune by gradients taken at a point nearer to the backdoored weights, so that the way back is repaired too.

    Each step is fine-tuning's (`ft`, scope all), but its gradient comes from w + rho d / |d| with d = w0 - w, w0 the
    backdoored weights, one length over all of them. `ft_sam` also takes its gradient elsewhere, but uphill, and needs
    a second pass for it; here each step has one. With ``rho=0`` it is `ft` bit by bit. **The paper's method also puts
    triggers that it inverts itself on a fifth of the images**, under their true labels; that half is not here, so this
    is what its term on the path does alone.

    Args:
        rho: length of the move towards the backdoored weights, >= 0, or, by ``rho_mode``, the share of the way.
        rho_mode: ``length`` (the paper's code; while w is nearer to w0 than rho, the point lies beyond w0) or
            ``fraction``, in [0, 1] (its text says "interpolated", which fits both).
        lr: learning rate, > 0.
        steps: optimiser steps, >= 0. With 0 nothing is touched. The paper: 3 rounds of 30 epochs of 2,500 images in
            batches of 128, which are 1,800; without inversion nothing happens between its rounds.
        schedule: ``constant``, as in the paper, or ``cosine`` to 0 over the actual number of steps.
        bn_at: where the running statistics of batch normalisation come from: ``moved``: from the passes at the moved
            points, as in the paper's code; ``home``: from one pass over the clean images at the weights in the end.
        momentum, weight_decay: of SGD.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {
        "epochs": "lengths count in optimiser steps: give steps",
        "rounds": "they only divide the steps here: give steps",
    }

    rho: NonNegative = 0.5
    rho_mode: Literal["length", "fraction"] = "length"
    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=90, images=2500, batch_size=128)
    schedule: Literal["constant", "cosine"] = "constant"
    bn_at: Literal["moved", "home"] = "moved"
    momentum: ShareBelowOne = 0.1
    weight_decay: NonNegative = 0.0
    batch_size: Count = 128
    augment: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho_mode == "fraction" and self.rho > 1.0:
            raise ValueError(f"rho is a share of the way in rho_mode fraction: in [0, 1], got {self.rho:g}")

    def lr_at(self) -> Schedule:
        """Learning rate over the run."""
        return schedules.constant(self.lr) if self.schedule == "constant" else schedules.cosine(self.lr, self.steps)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        backdoored = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

        @replayable
        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            names, now = zip(*model.named_parameters(), strict=True)
            moves = towards([backdoored[name] for name in names], now, rho=self.rho, mode=self.rho_mode)
            # The move is a constant, so the gradient with respect to the weights is that at the moved point.
            moved = {name: weight + move for name, weight, move in zip(names, now, moves, strict=True)}
            with frozen_statistics(model) if self.bn_at == "home" else nullcontext():
                return functional.cross_entropy(functional_call(model, moved, (images,)), labels)

        history = fine_tune(
            self,
            model,
            assets,
            trainer,
            loss=loss,
        )
        if self.bn_at == "home":
            refresh_statistics(model, assets.train.images, counters=trainer.counters)
        return Repair(model, history=history)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        work = training_work(self.steps, images_per_step(self.batch_size, n_owned), n_owned)
        if self.steps and self.bn_at == "home":
            work.forward_samples += n_owned
        return work


@torch.no_grad()
def towards(
    targets: Sequence[Tensor], weights: Sequence[Tensor], *, rho: float, mode: Literal["length", "fraction"]
) -> list[Tensor]:
    """The move of each tensor of ``weights`` towards its target: ``rho`` long over all together, or that share."""
    ways = [target - weight for target, weight in zip(targets, weights, strict=True)]
    if mode == "fraction":
        return [rho * way for way in ways]
    length = torch.stack([way.float().norm() for way in ways]).norm()
    return [way * (rho / (length + NEAR_ZERO)) for way in ways]
