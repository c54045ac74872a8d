"""Shared adversarial unlearning (Wei et al. 2023, arXiv:2307.10562)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, published_steps, register
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, PositiveShare
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, Optimizer, evaluating
from trainables.training.trainer import Trainer

# Probabilities are kept this far from 0 and 1 under a logarithm.
TINY = 1e-6


@register("sau")
@dataclass(frozen=True)
class SharedAdversarialUnlearning(Defense):
    """Unlearn the adversarial examples that the model shares with what it was: a trigger is one of those.

    For every batch a perturbation per image is sought that fools the model and its frozen copy into the *same* wrong
    class (`search_loss`, descent by signs); then the model is trained on the clean images and away from the class that
    the copy takes the perturbed ones for (`shared_loss`). Fooled into another class than the copy does no harm: that
    is the price of robustness which plain adversarial training would pay.

    Perturbations are in pixels, of images in [0, 1], and perturbed images stay in that range. Running statistics stay
    as they are.

    Args:
        norm: largest change of a pixel, in (0, 1]; the search starts there on every pixel.
        attack_steps: steps of the search for perturbations, >= 0; 0 leaves the start.
        attack_lr: length of each of these steps, in pixels, > 0.
        beta1: weight of fooling each of the two, >= 0.
        beta2: weight of their agreement, >= 0.
        lr: learning rate of Adam on the weights, > 0.
        steps: optimiser steps, >= 0, each with its own search for perturbations. BackdoorBench: 100 rounds over 2,500
            images, which are 1,000.
        shared_weight: of the shared loss beside the clean one, >= 0 (lambda 3 of the public code).
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True
    replaced: ClassVar[Mapping[str, str]] = {"rounds": "lengths count in optimiser steps: give steps"}
    # A step as long as the bound is at the bound at once, and stays there.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"attack_steps": {"attack_lr": 0.02}}

    norm: PositiveShare = 0.2
    attack_steps: CountOrZero = 5
    attack_lr: Positive = 0.2
    beta1: NonNegative = 0.01
    beta2: NonNegative = 1.0
    lr: Positive = 1e-4
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    shared_weight: NonNegative = 1.0
    batch_size: Count = 256
    augment: bool = True

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        if self.steps == 0:
            return Repair(model)
        reference = copy.deepcopy(model).requires_grad_(False).eval()

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            attacked = self.shared_examples(model, reference, images, labels, trainer.counters)
            with torch.no_grad():
                taken_for = reference(attacked).argmax(1)
            trainer.counters.forward_samples += 2 * len(images)
            trainer.counters.backward_samples += len(images)
            clean, shaken = model(torch.cat([images, attacked])).split(len(images))
            away = shared_loss(shaken, taken_for, labels)
            return functional.cross_entropy(clean, labels) + self.shared_weight * away

        history = trainer.fit(
            model,
            assets.train,
            steps=self.steps,
            lr_at=schedules.constant(self.lr),
            batch_size=images_per_step(self.batch_size, len(assets.train)),
            optimizer=Optimizer("adam", weight_decay=0.0),
            augmentation=trainer.augmentation() if self.augment else None,
            bn_mode="eval",
            loss=replayable(loss, counts=True),
        )
        return Repair(model, history=history)

    def shared_examples(
        self, model: nn.Module, reference: nn.Module, images: Tensor, labels: Tensor, counters: Counters
    ) -> Tensor:
        """The perturbed images, in [0, 1]."""
        attacked = (images + self.norm).clamp(0.0, 1.0)
        with evaluating(model):
            for _ in range(self.attack_steps):
                attacked.requires_grad_(True)
                value = search_loss(model(attacked), reference(attacked), labels, self.beta1, self.beta2)
                (slope,) = torch.autograd.grad(value, attacked)
                counters.forward_samples += 2 * len(images)
                counters.input_backward_samples += 2 * len(images)
                moved = attacked.detach() - self.attack_lr * slope.sign()
                attacked = torch.clamp(images + (moved - images).clamp(-self.norm, self.norm), 0.0, 1.0)
        return attacked.detach()

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        samples = self.steps * images_per_step(self.batch_size, n_owned)
        return Counters(
            steps=self.steps,
            forward_samples=samples * (3 + 2 * self.attack_steps),
            backward_samples=2 * samples,
            input_backward_samples=2 * samples * self.attack_steps,
        )


def search_loss(ours: Tensor, reference: Tensor, labels: Tensor, beta1: float, beta2: float) -> Tensor:
    """What a shared adversarial example makes small, from the logits (N, K) of both models.

    beta1 pushes each model that is still right away from the label; beta2 draws their outputs together (Jensen-Shannon
    divergence, in nats) for images that are not yet shared, i.e. taken for the same wrong class by both.
    """
    wrong = ours.argmax(1) != labels, reference.argmax(1) != labels
    shared = wrong[0] & wrong[1] & (ours.argmax(1) == reference.argmax(1))
    fooling = [
        -(functional.cross_entropy(logits, labels, reduction="none") * ~done).sum() / (~done).sum().clamp(min=1)
        for logits, done in zip((ours, reference), wrong, strict=True)
    ]
    apart = (jensen_shannon(ours, reference) * ~shared).sum() / (~shared).sum().clamp(min=1)
    return 0.5 * beta1 * (fooling[0] + fooling[1]) + beta2 * apart


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Divergence of two predictions per image, (N,) in nats, from logits (N, K); in [0, log 2]."""
    p, q = one.softmax(1).clamp(min=TINY), other.softmax(1).clamp(min=TINY)
    middle = (0.5 * (p + q)).log()
    return 0.5 * ((p * (p.log() - middle)).sum(1) + (q * (q.log() - middle)).sum(1))


def shared_loss(logits: Tensor, taken_for: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - p(the class that the reference takes it for)), over images that fool the reference, divided by all."""
    p = logits.softmax(1).gather(1, taken_for[:, None])[:, 0]
    fooled = taken_for != labels
    return -((1.0 - p).clamp(min=TINY).log() * fooled).sum() / len(labels)
