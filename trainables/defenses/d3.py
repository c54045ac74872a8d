"""D3: distance-driven detoxification (Wei et al. 2024, arXiv:2411.09585)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
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
from trainables.defenses.ft import in_scope, parts_of
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Schedule
from trainables.training.trainer import Trainer

# Under the root of the distance: at the backdoored weights themselves its gradient would be 0 / 0.
NEAR_ZERO = 1e-12


@register("d3")
@dataclass(frozen=True)
class DistanceDrivenDetoxification(Defense):
    """Drive chosen weights as far from the backdoored ones as the loss on clean images allows.

    The loss is ``loss_weight`` * mean(max(0, CE - slack)) - sum over the chosen tensors of |W - W0|; after each step
    every one of them is scaled back to its old length |W0|, so the distance is at most 2 |W0|. All parameters train.
    Unlike `fst`, which pushes along one fixed direction at any price, the push here goes on only while the loss stays
    above ``slack``; with it far below it is all that is left. What the new head does without any distance is `fst` with
    alpha 0. Notes: ``distance``, of the greatest possible; ``head_cosine``, of the new head to the old.

    Args:
        loss_weight: of the loss on clean images beside the distance, > 0. The paper's lambda: its code's settings say
            0.5, its README 10; we take the first.
        slack: loss that is good enough, >= 0: below it an image counts no more. The paper's epsilon.
        lr: learning rate, > 0.
        steps: optimiser steps, >= 0. With 0 nothing is touched. The paper: 100 epochs of 2,500 images in batches of
            256, which are 1,000.
        init: where the chosen weights begin, at their old length: ``random`` (uniform), ``noise`` (the old ones with
            noise of their own spread), ``far`` (the old ones, negated: the greatest distance there is) or ``near`` (the
            old ones).
        moved: the weights, without biases, that are driven away: of the ``classifier``, the ``last_block+classifier``,
            or ``all`` linear and convolution layers.
        hinge: whether the slack is given to each ``sample`` (the paper's code) or to the mean of the ``batch`` (its
            formula).
        schedule: ``cosine`` to 0 over the actual steps (the paper steps it per epoch), or ``constant``.
        momentum, weight_decay: of SGD; the paper's code builds it without decay.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        bn_mode: batch normalisation trains as usual (``train``), or its running statistics are frozen (``eval``).
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    replaced: ClassVar[Mapping[str, str]] = {"epochs": "lengths count in optimiser steps: give steps"}
    # A head that begins anew has a loss far above any slack in the first steps.
    matters_with: ClassVar[Mapping[str, Mapping[str, object]]] = {"slack": {"init": "near"}, "hinge": {"init": "near"}}

    loss_weight: Positive = 0.5
    slack: NonNegative = 0.1
    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    init: Literal["random", "noise", "far", "near"] = "random"
    moved: Literal["classifier", "last_block+classifier", "all"] = "classifier"
    hinge: Literal["sample", "batch"] = "sample"
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 0.0
    batch_size: Count = 256
    bn_mode: Literal["train", "eval"] = "train"
    augment: bool = True

    def lr_at(self) -> Schedule:
        """Learning rate over the run."""
        return schedules.constant(self.lr) if self.schedule == "constant" else schedules.cosine(self.lr, self.steps)

    def needs(self) -> frozenset[str]:
        return parts_of(self.moved) | {"head"}  # whose turn the notes tell, whatever is moved

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        layers = linear_weights(model)
        moved = [parameter for parameter in in_scope(model, self.moved) if id(parameter) in layers]
        originals = [weight.detach().clone() for weight in moved]
        head, old_head = model.classifier.weight, model.classifier.weight.detach().clone()
        begin(moved, self.init, trainer.generator("weights", "d3"))
        rescale(moved, originals)

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            each = functional.cross_entropy(model(images), labels, reduction="none")
            if self.hinge == "batch":
                each = each.mean()
            return self.loss_weight * (each - self.slack).relu().mean() - distance(moved, originals)

        history = fine_tune(
            self,
            model,
            assets,
            trainer,
            bn_mode=self.bn_mode,
            loss=loss,
            after_step=lambda _step: rescale(moved, originals),
        )
        longest = 2 * sum(float(weight.norm()) for weight in originals)
        with torch.no_grad():
            notes = {
                "distance": float(distance(moved, originals)) / longest,
                "head_cosine": float(functional.cosine_similarity(head.flatten(), old_head.flatten(), dim=0)),
            }
        return Repair(model, history=history, notes=notes)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.steps, images_per_step(self.batch_size, n_owned), n_owned)


def distance(weights: Sequence[Tensor], originals: Sequence[Tensor]) -> Tensor:
    """Sum of |W - W0| over the tensors."""
    apart = [(now - then).float().square().sum() for now, then in zip(weights, originals, strict=True)]
    return torch.stack([(one + NEAR_ZERO).sqrt() for one in apart]).sum()


@torch.no_grad()
def begin(weights: Sequence[Tensor], init: str, generator: Generator) -> None:
    """Put the weights where they begin; their lengths are for `rescale`."""
    for weight in weights:
        shape, device = weight.shape, generator.device
        match init:
            case "random":
                weight.copy_(torch.rand(shape, generator=generator, device=device) - 0.5)
            case "noise":
                weight.add_(torch.randn(shape, generator=generator, device=device).to(weight) * weight.std())
            case "far":
                weight.neg_()


@torch.no_grad()
def rescale(weights: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
    """Give every tensor the length of its original."""
    for now, then in zip(weights, originals, strict=True):
        now.mul_(then.norm() / now.norm().clamp_min(NEAR_ZERO))


def linear_weights(model: nn.Module) -> set[int]:
    """Ids of the weights of linear and convolution layers, attention's projections among them."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            found.add(id(module.weight))
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found.add(id(module.in_proj_weight))
    return found
