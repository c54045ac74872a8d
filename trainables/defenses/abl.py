"""Anti-backdoor learning (Li et al. 2021, arXiv:2110.11571)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.data.images import DataError, ImageSet, labelled_parts, to_float
from trainables.defenses.base import Defense, PoisonedData, Repair, images_per_step, register, training_work
from trainables.defenses.retraining import digest
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.settings import Count, CountOrZero, NonNegative, NormalisedBatch, Positive, ShareBelowOne, Within
from trainables.training import schedules
from trainables.training.captured_step import replayable
from trainables.training.loop import Counters, LossFunction, Optimizer, Schedule
from trainables.training.trainer import Trainer


@register("abl")
@dataclass(frozen=True)
class AntiBackdoorLearning(Defense):
    """Train a new model with losses held up near gamma, isolate what is learned all the same, unlearn it by ascent.

    Poison is learned first and fastest: after a short training whose gate keeps the loss from falling below gamma, the
    samples of lowest loss are taken for it. The model is then trained on the rest, and the cross-entropy of the
    isolated samples is *raised*. Unlike `ac` and `spectral` it does not look at the victim at all.

    The order of the training set does not matter: before anything is drawn, it is sorted by a hash of its samples.
    Settings of the later stages reuse the earlier ones (`Trainer.remember`).

    Args:
        tuning_epochs: passes of the gated training, >= 1.
        finetuning_epochs: passes of plain training over the rest, >= 0; the rate falls to a tenth after two thirds of
            them.
        unlearning_epochs: passes of ascent over the isolated samples, >= 0.
        isolation_ratio: share of the training set that is isolated, in (0, 0.5]; at least two samples
            (batch statistics).
        gate_on: what is held up: the ``batch`` mean (public code), or every ``sample`` by itself.
        gamma: loss that the gated training is held up near, in units of cross-entropy, >= 0.
        lr: learning rate of the first two stages, > 0.
        unlearn_lr: learning rate of the ascent, > 0. BackdoorBench's configuration says 5e-4, its code uses 1e-4.
        grad_clip: largest gradient norm of the ascent, > 0: the loss has no upper bound, and unclipped ascent takes
            whole classes with it.
        bn_mode: batch normalisation during the ascent. ``train`` takes batch statistics (public code) and moves the
            running ones to those of one class, which alone costs accuracy and may hide the backdoor: beside a result
            stands its control, ``unlearn_lr`` 1e-12, where no weight moves. ``eval`` leaves the running ones to the
            task, but what is known by heart has hardly a gradient there, and a backdoor that was isolated without error
            may stay as it is.
        batch_size, momentum, weight_decay: of Nesterov's SGD in all stages. A batch is at most a quarter of the
            training set, and at most what is isolated.
    """

    owns: ClassVar[type[PoisonedData]] = PoisonedData

    tuning_epochs: Count = 20
    finetuning_epochs: CountOrZero = 60
    unlearning_epochs: CountOrZero = 20
    isolation_ratio: Annotated[float, Within("(0, 0.5]")] = 0.01
    gate_on: Literal["batch", "sample"] = "batch"
    gamma: NonNegative = 0.5
    lr: Positive = 0.01
    unlearn_lr: Positive = 1e-4
    grad_clip: Positive = 10.0
    bn_mode: Literal["train", "eval"] = "train"
    batch_size: NormalisedBatch = 256
    momentum: ShareBelowOne = 0.9
    weight_decay: NonNegative = 1e-4

    def updater(self) -> Optimizer:
        """What updates the weights, in every stage that trains them."""
        return Optimizer("nesterov", self.momentum, self.weight_decay)

    def steps(self, epochs: int, n: int, batch: int) -> int:
        """Optimiser steps of ``epochs`` passes over ``n`` samples in batches of so many.

        Epochs, not steps: it trains a new model on the whole training set, as the victim was (see `base`).
        """
        return epochs * -(-n // batch)

    def isolated(self, n: int) -> int:
        """How many of ``n`` samples are isolated."""
        return max(2, round(self.isolation_ratio * n))

    def gated(self, losses: Tensor) -> Tensor:
        """The gated training loss, a scalar, of the cross-entropies of a batch, (B,): |loss - gamma| + gamma.

        That is "flooding". The paper's "local gradient ascent", sign(loss - gamma) * loss, has the same gradient
        everywhere, so a choice between them would change nothing.
        """
        values = losses.mean() if self.gate_on == "batch" else losses
        return ((values - self.gamma).abs() + self.gamma).mean()

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        if n_owned < 4:
            raise DataError(f"defense {self.name} needs at least 4 training images, got {n_owned}")

    def repair(self, model: Classifier, assets: PoisonedData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train))
        order = canonical_order(assets.train)
        train = assets.train.subset(order)
        n, stage = len(train), self._gated_stage()
        batch = images_per_step(self.batch_size, n)

        state = trainer.remember("gated_training", stage, lambda: self._train_gated(train, batch, trainer))
        losses = state["losses"]
        tuned = {name.removeprefix("model."): tensor for name, tensor in state.items() if name != "losses"}
        suspects = isolate(losses, self.isolated(n))
        kept = torch.ones(n, dtype=torch.bool, device=losses.device)
        kept[suspects] = False

        def finetune() -> Classifier:
            found = trainer.fresh_model("abl")
            found.load_state_dict(tuned)
            self._fit(found, train.subset(kept.nonzero()[:, 0]), batch, trainer, "finetuning")
            return found

        identity = {**stage, "isolated": digest(suspects), "finetuning_epochs": self.finetuning_epochs}
        new = trainer.remember_model("finetuning", identity, finetune)
        self._fit(new, train.subset(suspects), batch, trainer, "unlearning")

        scores = torch.empty_like(losses)
        scores[order] = -losses
        return Repair(new, scores=scores, removed=order[suspects].sort().values)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        isolated, batch = self.isolated(n_owned), images_per_step(self.batch_size, n_owned)
        total = Counters(forward_samples=n_owned)
        for epochs, n in (
            (self.tuning_epochs, n_owned),
            (self.finetuning_epochs, n_owned - isolated),
            (self.unlearning_epochs, isolated),
        ):
            total += training_work(self.steps(epochs, n, batch), batch, n)
        return total

    def _gated_stage(self) -> dict[str, Any]:
        """All settings that the gated training depends on."""
        keys = ("tuning_epochs", "gate_on", "gamma", "lr", "batch_size", "momentum", "weight_decay")
        return {key: getattr(self, key) for key in keys}

    def _train_gated(self, train: ImageSet, batch: int, trainer: Trainer) -> dict[str, Tensor]:
        model = trainer.fresh_model("abl")
        self._fit(model, train, batch, trainer, "tuning")
        losses = sample_losses(model, train, trainer)
        return {"losses": losses, **{f"model.{name}": tensor for name, tensor in model.state_dict().items()}}

    def _fit(self, model: Classifier, data: ImageSet, batch: int, trainer: Trainer, stage: str) -> None:
        epochs = {
            "tuning": self.tuning_epochs,
            "finetuning": self.finetuning_epochs,
            "unlearning": self.unlearning_epochs,
        }[stage]
        steps = self.steps(epochs, len(data), batch)
        if steps == 0:
            return
        losses: dict[str, LossFunction] = {
            "tuning": lambda net, images, labels: self.gated(_cross_entropies(net, images, labels)),
            "finetuning": lambda net, images, labels: _cross_entropies(net, images, labels).mean(),
            "unlearning": lambda net, images, labels: -_cross_entropies(net, images, labels).mean(),
        }
        rates: dict[str, Schedule] = {
            "tuning": schedules.constant(self.lr),
            "finetuning": lambda step: self.lr if 3 * step < 2 * steps else self.lr / 10,
            "unlearning": schedules.constant(self.unlearn_lr),
        }
        ascent = stage == "unlearning"
        trainer.fit(
            model,
            data,
            purpose=f"abl-{stage}",
            steps=steps,
            lr_at=rates[stage],
            batch_size=batch,
            optimizer=self.updater(),
            augmentation=trainer.augmentation(),
            loss=replayable(losses[stage]),
            bn_mode=self.bn_mode if ascent else "train",
            grad_clip=self.grad_clip if ascent else None,
        )


def _cross_entropies(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels, reduction="none")


@torch.no_grad()
def sample_losses(model: Classifier, data: ImageSet, trainer: Trainer, batch_size: int = 1024) -> Tensor:
    """Cross-entropy of every sample, float64 (N,), in eval mode, without augmentation, in whole batches; counted.

    In float32, and the logarithm in float64: what is learned best has a loss near 0, and ranks need it resolved.
    """
    model.eval()
    parts = []
    for images, labels in labelled_parts(data, batch_size):
        parts.append(functional.cross_entropy(model(to_float(images)).double(), labels, reduction="none"))
        trainer.counters.forward_samples += len(labels)
    return torch.cat(parts)


def isolate(losses: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` lowest losses (N,), int64, ascending; of equal losses the first."""
    return losses.argsort(stable=True)[:count].sort().values


def canonical_order(data: ImageSet) -> Tensor:
    """An order of the samples that depends on their content alone: int64 (N,), to index ``data`` with.

    By a 64-bit hash (integer arithmetic, so the same on every device); equal samples stay in the order they have.
    """
    size = data.images[0].numel()
    weights = torch.randint(-(2**62), 2**62, (size + 1,), generator=generator_for(0, "canonical-order"))
    weights = weights.to(data.images.device)
    hashes = [
        (images.flatten(1).long() * weights[:size]).sum(1) + labels * weights[size]
        for images, labels in zip(data.images.split(1024), data.labels.split(1024), strict=True)
    ]
    return torch.cat(hashes).argsort(stable=True)
