"""Neural Cleanse (Wang et al. 2019, IEEE S&P): reconstruct triggers, find the odd class out, unlearn its trigger."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import DataError
from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.defenses.trigger_inversion import (
    Inversion,
    Triggers,
    anomaly_indices,
    flagged,
    invert_triggers,
    stamp,
)
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, NormalisedBatch, Positive, PositiveShare, ShareBelowOne
from trainables.training import schedules
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer


@register("nc")
@dataclass(frozen=True)
class NeuralCleanse(Defense):
    """Flag classes that a much smaller patch reaches than the others; fine-tune with that patch under true labels.

    A class is flagged where its mask's norm lies below the median by more than ``mad_threshold`` median absolute
    deviations. With none flagged it abstains and returns its input. Expected to fail on triggers that differ from image
    to image, on warping and on all-to-all labels; below about seven classes the deviation means little.

    Masks and patterns go into the unlearning as they were found. (Public code sends them through min-max normalised
    picture files, which lose their scale, and then stores another model than the one it tuned.)

    Args:
        init_cost: weight of the mask norm at the start, > 0.
        tau: share of clean images that a trigger must send to its class, in (0, 1]. The paper's is 0.99.
        mask_steps: most steps of the search for masks per class, >= 1, made in whole passes over the clean images.
            BackdoorBench: 80 passes over 2,500 images, which are 800.
        mask_lr: learning rate of the search for masks, > 0.
        patience: passes in a row above (below) ``tau`` before the weight rises (falls), >= 1.
        stop_patience: passes without a mask smaller by 1 % after which a class is done, >= 1.
        mad_threshold: deviations below the median from which on a class is flagged, >= 0.
        unlearn_ratio: share of each batch that carries a reconstructed trigger, in (0, 1].
        steps: optimiser steps of the fine-tuning, >= 0; its rate falls along a cosine to 0. BackdoorBench: 100 epochs
            of 2,500 images, which are 1,000.
        lr: learning rate of the fine-tuning, > 0.
        batch_size: images per step of the search and of the fine-tuning, at most a quarter of the clean set.
        momentum, weight_decay: of the fine-tuning's SGD.
    """

    owns: ClassVar[type[CleanData]] = CleanData
    judges_outputs: ClassVar[bool] = True
    replaced: ClassVar[Mapping[str, str]] = {
        "epochs": "lengths count in optimiser steps: give steps",
        "mask_epochs": "lengths count in steps: give mask_steps",
    }
    plan_is_exact: ClassVar[bool] = False  # classes settle early, and without a flag nothing is tuned
    # What steers the search shows after some passes of it.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tau": {"mask_steps": 16, "steps": 1, "init_cost": 1.0},
        "patience": {"mask_steps": 16, "steps": 1},
        "stop_patience": {"mask_steps": 16, "steps": 1, "init_cost": 1e6, "mask_lr": 1e-3, "tau": 1e-6},
    }

    init_cost: Positive = 1e-3
    tau: PositiveShare = 0.98
    mask_steps: Count = published_steps(epochs=80, images=2500, batch_size=256)
    mask_lr: Positive = 0.1
    patience: Count = 5
    stop_patience: Count = 25
    mad_threshold: NonNegative = 2.0
    unlearn_ratio: PositiveShare = 0.2
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    lr: Positive = 0.01
    batch_size: NormalisedBatch = 256
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4

    def updater(self) -> Optimizer:
        """What updates the weights, in every stage that trains them."""
        return Optimizer("sgd", self.momentum, self.weight_decay)

    def inversion(self, n: int) -> Inversion:
        """How triggers are sought on a clean set of ``n``."""
        batch = images_per_step(self.batch_size, n)
        return Inversion(
            init_cost=self.init_cost,
            tau=self.tau,
            epochs=-(-self.mask_steps // -(-n // batch)),
            lr=self.mask_lr,
            batch_size=batch,
            patience=self.patience,
            stop_patience=self.stop_patience,
        )

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        if model.num_classes < 3:
            raise DataError(
                f"defense {self.name} compares the triggers of classes with their median: it needs at least 3 "
                f"classes, got {model.num_classes}"
            )
        if n_owned < 2:
            raise DataError(f"defense {self.name} needs at least 2 clean training images, got {n_owned}")

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        train = assets.train
        self.check(model, len(train))
        rules = self.inversion(len(train))

        def invert() -> dict[str, Tensor]:
            found = invert_triggers(model, train.images, trainer, rules, range(model.num_classes))
            return {field.name: getattr(found, field.name) for field in dataclasses.fields(Triggers)}

        triggers = Triggers(**trainer.remember("triggers", dataclasses.asdict(rules), invert))
        norms = [float(norm) for norm in triggers.norms]
        suspects = flagged(norms, self.mad_threshold)
        notes = {
            "mask_norms": norms,
            "anomaly_indices": anomaly_indices(norms),
            "trigger_success": [float(share) for share in triggers.success],
        }
        if not suspects:
            return Repair(model, status="abstained", flagged_classes=(), notes=notes)
        history = trainer.fit(
            model,
            train,
            purpose="nc-unlearning",
            steps=self.steps,
            lr_at=schedules.cosine(self.lr, self.steps),
            batch_size=rules.batch_size,
            optimizer=self.updater(),
            augmentation=trainer.augmentation(),
            loss=Unlearning(triggers.masks[list(suspects)], triggers.patterns[list(suspects)], self.unlearn_ratio),
        )
        return Repair(model, history=history, flagged_classes=suspects, notes=notes)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        """The most it can cost, for 10 classes."""
        return self.plan_for(10, n_owned, n_validation)

    def plan_for(self, num_classes: int, n_owned: int, n_validation: int = 0) -> Counters:
        """The most it can cost: a trigger is sought for every class."""
        rules = self.inversion(n_owned)
        tuning = training_work(self.steps, rules.batch_size, n_owned)
        stamped = num_classes * rules.epochs * n_owned
        return Counters(
            steps=tuning.steps,
            forward_samples=tuning.forward_samples + stamped,
            backward_samples=tuning.backward_samples,
            input_backward_samples=stamped,
        )


@dataclass
class Unlearning:
    """Cross-entropy with true labels, where the first images of each batch carry a trigger.

    Batches are shuffled, so the first are any; several triggers take turns, and the next batch goes on where this one
    ended.

    Args:
        masks, patterns: of the flagged classes, (F, 1, H, W) and (F, 3, H, W).
        ratio: share of the batch that is stamped, at least one image.
        shown: how many images were stamped so far.
    """

    masks: Tensor
    patterns: Tensor
    ratio: float
    shown: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        count = max(1, round(self.ratio * len(images)))
        turn = torch.arange(self.shown, self.shown + count, device=images.device) % len(self.masks)
        self.shown += count
        stamped = stamp(images[:count], self.masks[turn], self.patterns[turn])
        mixed = torch.cat([stamped, images[count:]]).contiguous(memory_format=torch.channels_last)
        return functional.cross_entropy(model(mixed), labels)
