"""Neural mask fine-tuning (Karim et al. 2024, arXiv:2407.10052)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, register, training_work
from trainables.defenses.pruning import MaskedModel, require_batch_norm
from trainables.machine.transfer import sent_ahead
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed
from trainables.settings import Count, CountOrZero, NonNegative, Positive, Share, ShareBelowOne
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer


@register("nft")
@dataclass(frozen=True)
class NeuralMaskFineTuning(Defense):
    """Fine-tune one factor per BatchNorm channel on mixed clean images, freely in deep layers, hardly in the first.

    The factors (masks) multiply the scales and start at 1; shifts and all other weights stay. Unlike `anp` and `rnp`
    nothing is pruned by a threshold: the masks as they end up are the repair. After each step those of layer l = 1, 2,
    ... (in module order) are put back into [floor e^(-falloff l), 1]. With ``floor`` 1 and ``falloff`` 0 no mask moves.

    Args:
        lr: learning rate of the masks (SGD), > 0.
        decay: the rate falls along a cosine to this share of ``lr``, in [0, 1]. The paper's code: from 0.05 towards
            0.02, in 5 stages where ours falls at every step.
        iterations: optimiser steps, >= 0. The paper: 1,000 in batches of 128 on 500 images.
        eta: weight of the sum of |1 - m|, divided by the clean images per class, >= 0.
        floor, falloff: of the least mask of a layer, see above; in [0, 1] and >= 0. The paper's alpha and beta.
        mixup: images and labels are mixed by shares of Beta(mixup, mixup), one per batch, >= 0; 0: not at all.
        momentum: of SGD, in [0, 1).
        bn_mode: ``train`` learns on batch statistics, and the running ones follow the clean images (public code);
            ``eval`` leaves them as they are, so that masks alone repair.
        batch_size: images per step, at most a quarter of the clean set, see `base.images_per_step`.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True

    lr: Positive = 0.05
    decay: Share = 0.4
    iterations: CountOrZero = 1000
    eta: NonNegative = 1e-3
    floor: Share = 0.8
    falloff: NonNegative = 0.5
    mixup: NonNegative = 1.0
    momentum: ShareBelowOne = 0.95
    bn_mode: Literal["train", "eval"] = "train"
    batch_size: Count = 128
    augment: bool = True

    def needs(self) -> frozenset[str]:
        return frozenset({"batch_norm"})

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_batch_norm(model, self.name)

    def lr_at(self, step: int) -> float:
        """Rate of the masks: half a cosine from ``lr`` to its share ``decay`` over all steps."""
        fallen = (1.0 - math.cos(math.pi * step / max(1, self.iterations))) / 2.0
        return self.lr * (1.0 - (1.0 - self.decay) * fallen)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train))
        if self.iterations == 0:
            return Repair(model)
        masked = MaskedModel(model, batch_statistics=self.bn_mode == "train")
        lowest = self.lowest(masked.sizes).to(masked.mask)
        stiffness = self.eta * trainer.num_classes / len(assets.train)
        orders = trainer.generator("mixup")
        shares = np.random.default_rng(derive_seed(trainer.seed, "mixup", "shares"))

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            held = stiffness * (1.0 - masked.mask).abs().sum()
            if self.mixup == 0.0:
                return functional.cross_entropy(model(images), labels) + held
            share = float(shares.beta(self.mixup, self.mixup))
            other = sent_ahead(torch.randperm(len(labels), generator=orders), labels.device)
            logits = model(share * images + (1.0 - share) * images[other])
            own, others = (functional.cross_entropy(logits, target) for target in (labels, labels[other]))
            return share * own + (1.0 - share) * others + held

        @torch.no_grad()
        def put_back(_step: int) -> None:
            masked.mask.copy_(masked.mask.maximum(lowest).clamp(max=1.0))

        history = trainer.fit(
            masked,
            assets.train,
            steps=self.iterations,
            lr_at=self.lr_at,
            batch_size=images_per_step(self.batch_size, len(assets.train)),
            optimizer=Optimizer("sgd", self.momentum, 0.0),
            augmentation=trainer.augmentation() if self.augment else None,
            loss=loss,
            trainable=[masked.mask],
            after_step=put_back,
        )
        mask = masked.mask.detach()
        fold(model, mask)
        notes = {
            "mask_mean": float(mask.mean()),
            "mask_min": float(mask.min()),
            "at_floor": float((mask <= lowest).double().mean()),
        }
        return Repair(model.eval(), history=history, notes=notes)

    def lowest(self, sizes: list[int]) -> Tensor:
        """The least mask of every channel, (C,), of layers with so many channels."""
        return torch.cat(
            [torch.full((size,), self.floor * math.exp(-self.falloff * layer)) for layer, size in enumerate(sizes, 1)]
        )

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return training_work(self.iterations, images_per_step(self.batch_size, n_owned), n_owned)


@torch.no_grad()
def fold(model: nn.Module, mask: Tensor) -> None:
    """Multiply the scales of all batch normalisation by ``mask``, (C,) in the order of `batch_norms`, in place."""
    norms = batch_norms(model)
    for norm, own in zip(norms.values(), mask.split([norm.num_features for norm in norms.values()]), strict=True):
        norm.weight.mul_(own)
