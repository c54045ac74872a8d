"""Fine-pruning (Liu, Dolan-Gavitt & Garg 2018, arXiv:1805.12185)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import ImageSet, in_parts, to_float
from trainables.defenses.base import (
    CleanData,
    Defense,
    Repair,
    images_per_step,
    published_steps,
    register,
    training_work,
)
from trainables.defenses.pruning import Tolerance, ToleranceUnit, mean_magnitude, require_validation
from trainables.models.channels import batch_norms, trace_convolutions
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, ShareBelowOne
from trainables.training import loop, schedules
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer

BATCH = 1024


@register("fp")
@dataclass(frozen=True)
class FinePruning(Defense):
    """Prune the units that clean images leave most silent, as far as accuracy allows, then fine-tune around the holes.

    Unlike `ft` some units are gone for good; unlike `anp`, `rnp` and `clp` they are chosen by activation alone.

    Args:
        acc_tol: pruning ends before validation accuracy has dropped by more than this, in [0, 1); above 0 it allows one
            validation image at least.
        tolerance: that drop is ``relative`` to the accuracy before (BackdoorBench), or in ``points`` (the paper).
        layer: whose units are pruned: ``classifier_in``, the features that enter the classifier (BackdoorBench), or
            ``last_conv``, the output channels of the last convolution (the paper), with the BatchNorm of that
            convolution where it has one and behind the activation where one follows at once.
        prune_steps: equal steps in which all units would go, >= 1, with a look at the validation set after each; a step
            takes at least one unit.
        lr: peak of the fine-tuning's rate (cosine to 0 over its actual length), > 0.
        steps: optimiser steps of the fine-tuning, >= 0; with 0 the model is only pruned. BackdoorBench: 100 epochs of
            2,500 images, which are 1,000.
        momentum, weight_decay: of the fine-tuning's SGD.
        batch_size: images per step of the fine-tuning, at most a quarter of the clean set.
        augment: random crop (and flip where the data set allows it).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    plan_is_exact: ClassVar[bool] = False
    replaced: ClassVar[Mapping[str, str]] = {"epochs": "lengths count in optimiser steps: give steps"}

    acc_tol: ShareBelowOne = 0.1
    tolerance: ToleranceUnit = "relative"
    layer: Literal["classifier_in", "last_conv"] = "classifier_in"
    prune_steps: Count = 100
    lr: Positive = 0.01
    steps: CountOrZero = published_steps(epochs=100, images=2500, batch_size=256)
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    batch_size: Count = 256
    augment: bool = True

    def needs(self) -> frozenset[str]:
        return frozenset({"head" if self.layer == "classifier_in" else "convolutions"})

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        require_validation(n_validation, self.name)

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), len(assets.validation))
        layer = (_Features if self.layer == "classifier_in" else _LastConvolution)(model, trainer)
        order = layer.magnitude(assets.train).argsort(stable=True)
        count, before, after = self.admissible(order, layer.accuracy_on(assets.validation), len(assets.validation))
        pruned = order[:count]
        layer.silence(pruned)
        notes = {
            "validation_before": before,
            "validation_after": after,
            "pruned": count,
            "channels": len(order),
            "pruned_units": " ".join(map(str, sorted(pruned.tolist()))),
        }
        if self.steps == 0:
            return Repair(model.eval(), status="ok" if count else "abstained", notes=notes)
        history = trainer.fit(
            model,
            assets.train,
            steps=self.steps,
            lr_at=schedules.cosine(self.lr, self.steps),
            batch_size=images_per_step(self.batch_size, len(assets.train)),
            optimizer=Optimizer("sgd", self.momentum, self.weight_decay),
            augmentation=trainer.augmentation() if self.augment else None,
            after_step=lambda _step: layer.silence(pruned),
        )
        return Repair(model, history=history, notes=notes)

    def admissible(
        self, order: Tensor, accuracy_without: Callable[[Tensor], float], images: int
    ) -> tuple[int, float, float]:
        """How many units go: (their number, validation accuracy before, and after pruning that many).

        They go cumulatively in ``order``; the first step that breaks the tolerance ends it and is taken back whole.
        """
        size = math.ceil(len(order) / self.prune_steps)
        tolerance, before = Tolerance(self.acc_tol, self.tolerance, images), accuracy_without(order[:0])
        count, after = 0, before
        while count < len(order):
            candidate = min(count + size, len(order))
            accuracy = accuracy_without(order[:candidate])
            if not tolerance.allows(accuracy, before):
                break
            count, after = candidate, accuracy
        return count, before, after

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        work = training_work(self.steps, images_per_step(self.batch_size, n_owned), n_owned)
        work.forward_samples += n_owned + n_validation
        if self.layer == "last_conv":  # every step of the pruning is a pass; it may end before the last
            work.forward_samples += 1 + self.prune_steps * n_validation
        return work


class _Features:
    """The units that enter the classifier. Their columns in its weight are what is pruned."""

    def __init__(self, model: Classifier, trainer: Trainer) -> None:
        self.model, self.trainer = model, trainer

    def magnitude(self, train: ImageSet) -> Tensor:
        return mean_magnitude([self.trainer.features(self.model, train.images)])

    def accuracy_on(self, validation: ImageSet) -> Callable[[Tensor], float]:
        """Accuracy without some units; features are computed once, so a look costs one small product."""
        features, head = self.trainer.features(self.model, validation.images), self.model.classifier

        @torch.no_grad()
        def accuracy_without(units: Tensor) -> float:
            weight = head.weight.clone()
            weight[:, units] = 0.0
            logits = functional.linear(features, weight, head.bias)  # in float32 whatever the precision, as the model's
            return float((logits.argmax(1) == validation.labels).double().mean())

        return accuracy_without

    @torch.no_grad()
    def silence(self, units: Tensor) -> None:
        self.model.classifier.weight[:, units] = 0.0


class _LastConvolution:
    """The output channels of the last convolution that runs: its filters, and the BatchNorm channels behind them."""

    def __init__(self, model: Classifier, trainer: Trainer) -> None:
        self.model, self.trainer = model, trainer
        pairs, order = trace_convolutions(model)
        trainer.counters.forward_samples += 1
        conv = model.get_submodule(order[-1])
        assert isinstance(conv, nn.Conv2d)
        norms = [batch_norms(model)[pair.norm] for pair in pairs if pair.direct and pair.conv == order[-1]]
        self.output: nn.Module = norms[-1] if norms else conv
        block = model.last_block
        if isinstance(block, nn.Sequential) and block[0] is conv:
            # Convolution, norm and activation, nothing else (VGG, MobileNetV2): a unit is what the activation lets
            # through. A channel far below 0 on every image is silent, large as its magnitude before that is.
            self.output = block[-1]
        self.pruned_parameters = [parameter for module in (conv, *norms) for parameter in module.parameters()]

    @torch.no_grad()
    def magnitude(self, train: ImageSet) -> Tensor:
        parts = list[Tensor]()
        # Reduced to (N, C) in the hook: the maps of a whole data set need not fit into memory.
        hook = self.output.register_forward_hook(
            lambda _module, _inputs, output: parts.append(output.double().abs().flatten(2).mean(2))
        )
        try:
            self.model.eval()
            with loop.autocast(train.images.device, self.trainer.precision):
                for batch in in_parts(train.images, BATCH):
                    self.model(to_float(batch))
                    self.trainer.counters.forward_samples += len(batch)
        finally:
            hook.remove()
        return mean_magnitude(parts)

    def accuracy_on(self, validation: ImageSet) -> Callable[[Tensor], float]:
        """Accuracy without some units; the parameters are put back after every look."""

        def accuracy_without(units: Tensor) -> float:
            kept = [parameter.detach().clone() for parameter in self.pruned_parameters]
            self.silence(units)
            accuracy = self.trainer.accuracy(self.model, validation)
            with torch.no_grad():
                for parameter, value in zip(self.pruned_parameters, kept, strict=True):
                    parameter.copy_(value)
            return accuracy

        return accuracy_without

    @torch.no_grad()
    def silence(self, units: Tensor) -> None:
        for parameter in self.pruned_parameters:
            parameter[units] = 0.0
