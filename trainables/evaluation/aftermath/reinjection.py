"""Re-injection: how quickly a repaired model learns the same backdoor again, beside a model that never had it.

After the "backdoor sequela" of Sha et al. (2022, arXiv:2212.09067, Figures 9 to 12), whose protocol is not published.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import Attack, DataPoisoning
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import DataError, ImageSet, TriggeredSet
from trainables.evaluation.aftermath.further_training import follow, report_part
from trainables.evaluation.aftermath.settings import ORIGINAL, RATE_WITHOUT_POISON, Arm, Reinjection
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.training.geometry import Moves
from trainables.training.loop import BatchTransform, Counters, Optimizer
from trainables.training.trainer import Trainer

# Within the first epoch, where the curve may already be over; later it is measured after every epoch.
EARLY_STEPS = (1, 2, 5, 10, 20, 40, 50, 100)
# ASR that "the backdoor is back" is read at.
LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Curve:
    """A re-injection, measured on the report half of the test set; step 0 is the model as it was handed over.

    Args:
        arm: the amount of poison and the learning rate.
        poisoned: images of the training set that carried the trigger.
        steps: at which was measured, ascending, from 0.
        asr, clean_accuracy: there, fractions in [0, 1]; shorter than planned where the training diverged.
        per_epoch: steps of an epoch.
        diverged: the training left the finite numbers after the last measured step.
    """

    arm: Arm
    poisoned: int
    steps: tuple[int, ...]
    asr: tuple[float, ...]
    clean_accuracy: tuple[float, ...]
    per_epoch: int
    diverged: bool = False

    def steps_to(self, level: float) -> int | None:
        """The first measured step with an ASR of at least ``level``; None: it was never reached."""
        return next((step for step, asr in zip(self.steps, self.asr, strict=True) if asr >= level), None)

    @property
    def area(self) -> float:
        """Mean ASR over the training, by trapezoids, in [0, 1]: 1 is a backdoor that was there from the first step."""
        pairs = list(zip(self.steps, self.asr, strict=True))
        if len(pairs) == 1:
            return pairs[0][1]
        parts = ((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(pairs))
        return math.fsum(parts) / (pairs[-1][0] - pairs[0][0])

    def record(self) -> dict[str, Any]:
        """JSON-able, as it stands in the column ``reinjection``."""
        return {
            "arm": self.arm.name,
            "lr": self.arm.lr,
            "poisoned": self.poisoned,
            "steps_per_epoch": self.per_epoch,
            "steps_to_half": self.steps_to(LEVELS[0]),
            "steps_to_90": self.steps_to(LEVELS[1]),
            "area": round(self.area, 5),
            "diverged": self.diverged,
            "steps": list(self.steps),
            "asr": [round(value, 5) for value in self.asr],
            "clean_accuracy": [round(value, 5) for value in self.clean_accuracy],
        }


def own_rate(attack: Attack, labels: Tensor) -> float:
    """Share of a training set with ``labels`` that the attack itself poisons; 0.1 for one that poisons none."""
    if isinstance(attack, DataPoisoning):
        return attack.planned(labels) / len(labels)
    rate = getattr(attack, "poison_rate", None)
    return RATE_WITHOUT_POISON if rate is None or without_poisoned_data(attack) else float(rate)


def without_poisoned_data(attack: Attack) -> str:
    """How the backdoor of an attack without a poisoned training set is re-injected, in words; empty for the others."""
    if not attack.implants_backdoor or attack.releases_training_set:
        return ""
    return (
        f"{attack.name} releases no poisoned data: its backdoor is re-injected by training on images that carry its "
        f"stored trigger, {RATE_WITHOUT_POISON:g} of them where rates says original"
    )


def candidates(attack: Attack, labels: Tensor, num_classes: int) -> Tensor:
    """Indices of the images that may be poisoned, int64: those whose label changes; clean-label: those of the class."""
    if getattr(attack, "clean_label", False):
        return (labels == attack.target_label).nonzero()[:, 0]
    return (attack.targets(labels, num_classes) != labels).nonzero()[:, 0]


def amount(arm: Arm, n: int) -> int:
    """Poisoned images of an arm on a training set of ``n``."""
    return arm.count if arm.count is not None else round((arm.rate or 0.0) * n)


def planned_arms(settings: Reinjection, attack: Attack, labels: Tensor) -> list[Arm]:
    """The arms that differ: an amount that another one comes to as well is tried once."""
    found: dict[tuple[int, float], Arm] = {}
    for arm in settings.arms(own_rate(attack, labels)):
        found.setdefault((amount(arm, len(labels)), arm.lr), arm)
    return list(found.values())


def check_reinjection(settings: Reinjection, attack: Attack, labels: Tensor, num_classes: int) -> None:
    """Refuse, before any work, what cannot be re-injected.

    Args:
        labels: of the attacker's training set, int64 (N,).

    Raises:
        DataError: the attack has no trigger, or an arm asks for no image or for more than may be poisoned.
    """
    if not attack.implants_backdoor:
        raise DataError(
            f"aftermath.reinjection: attack {attack.name} has no trigger to inject again; leave it out of attacks, or "
            "leave reinjection out"
        )
    n, most = len(labels), len(candidates(attack, labels, num_classes))
    for arm in planned_arms(settings, attack, labels):
        key, given = ("counts", arm.count) if arm.rate is None else ("rates", f"{arm.rate:g}")
        if arm.rate is not None and amount(arm, n) < 1:
            raise DataError(
                f"aftermath.reinjection.{key}: {given} selects no image of {n}; use at least {1 / n:.2g}, or counts"
            )
        # An attack may draw images that already are of the target class; again there is nothing to learn from those.
        if amount(arm, n) > most and arm.name != f"{ORIGINAL} rate":
            raise DataError(
                f"aftermath.reinjection.{key}: {given} asks for {amount(arm, n)} images, and attack {attack.name} may "
                f"poison {most} of {n}; use less"
            )


def total_steps(settings: Reinjection, n: int) -> int:
    """Optimiser steps of one arm on a training set of ``n``, at least 1."""
    return max(1, round(settings.epochs * steps_per_epoch(settings, n)))


def steps_per_epoch(settings: Reinjection, n: int) -> int:
    """Optimiser steps of one pass over ``n`` images."""
    return -(-n // settings.batch_size)


def measured_steps(settings: Reinjection, n: int) -> tuple[int, ...]:
    """The steps after which is measured, ascending: 0, early ones of the first epoch, every epoch's last, the last."""
    total, epoch = total_steps(settings, n), steps_per_epoch(settings, n)
    early = (step for step in EARLY_STEPS if step < min(epoch, total))
    return tuple(sorted({0, *early, *range(epoch, total + 1, epoch), total}))


def planned_work(settings: Reinjection, attack: Attack, labels: Tensor, n_measured: int) -> Counters:
    """The work of all arms for one model, before it is done; every measurement included.

    Args:
        labels: of the attacker's training set, int64 (N,).
        n_measured: clean and triggered test images of the report half.
    """
    n, arms = len(labels), len(planned_arms(settings, attack, labels))
    steps = arms * total_steps(settings, n)
    trained = steps * min(settings.batch_size, n)
    return Counters(steps, trained + arms * len(measured_steps(settings, n)) * n_measured, trained)


@exact_float32()
def reinject(
    settings: Reinjection,
    model: Classifier,
    *,
    attack: Attack,
    trigger: Trigger,
    train: ImageSet,
    test: ImageSet,
    triggered: TriggeredSet,
    trainer: Trainer,
    seed: int,
) -> list[Curve]:
    """All arms, each on a copy of ``model``, which stays as it is.

    The poisoned images of an arm are drawn by ``seed`` alone, those of a smaller arm lie within those of a larger one,
    and every arm sees the same batches: models and arms differ in nothing else. Attacks that stamp in the training loop
    do so here too, after the augmentation, all others once, before it; cross and noise samples are left out.

    Args:
        attack, trigger: of the victim; the trigger as it was stored, generators and warps included.
        train: the attacker's clean training set, on the trainer's device, as are ``test`` and ``triggered``.
        trainer: counts the work.
        seed: of the victim.
    """
    trigger = copy.deepcopy(trigger).to(trainer.device).eval()
    chosen = candidates(attack, train.labels, trainer.num_classes).cpu()
    chosen = chosen[torch.randperm(len(chosen), generator=generator_for(seed, "reinjection"))]
    halves = report_part(test, triggered)
    curves = []
    for arm in planned_arms(settings, attack, train.labels.cpu()):
        poison = chosen[: amount(arm, len(train))]
        curves.append(_one(settings, arm, copy.deepcopy(model), attack, trigger, poison, train, halves, trainer))
    return curves


def _one(
    settings: Reinjection,
    arm: Arm,
    model: Classifier,
    attack: Attack,
    trigger: Trigger,
    poison: Tensor,
    train: ImageSet,
    halves: tuple[ImageSet, TriggeredSet],
    trainer: Trainer,
) -> Curve:
    """One arm; ``model`` is trained in place."""
    data, transform, augmented = _poisoned(attack, trigger, poison, train, trainer, arm)
    found = follow(
        model,
        data,
        halves,
        trainer,
        measured_steps(settings, len(train)),
        purpose="reinjection",
        lr=arm.lr,
        batch_size=settings.batch_size,
        optimizer=Optimizer("sgd", momentum=0.9),
        augmentation=trainer.augmentation() if augmented else None,
        transform=transform,
    )
    epoch = steps_per_epoch(settings, len(train))
    return Curve(arm, len(poison), found.steps, found.asr, found.clean_accuracy, epoch, found.diverged)


def _poisoned(
    attack: Attack, trigger: Trigger, poison: Tensor, train: ImageSet, trainer: Trainer, arm: Arm
) -> tuple[ImageSet, BatchTransform | None, bool]:
    """The training set, what is done to its batches, and whether the usual augmentation comes before that."""
    poison, classes = poison.to(train.images.device), trainer.num_classes
    labels = train.labels.clone()
    targets = labels[poison] if getattr(attack, "clean_label", False) else attack.targets(labels[poison], classes)
    if not attack.stamps_in_loop:
        images = train.images.clone()
        if len(poison):  # without any there is nothing to stamp
            images[poison], labels[poison] = stamp(trigger, train.images[poison]), targets
        return ImageSet(images, labels), None, True
    # A batch does not know which images it holds: a label beyond the classes marks those that are to be stamped.
    labels[poison] = targets + classes
    draws = getattr(attack, "augmentation", None)
    moves = None if draws is None else Moves(draws, attack.resampling)  # type: ignore[attr-defined]
    stream = trainer.generator("reinjection", "augmentation")

    @torch.no_grad()
    def stamped(images: Tensor, marked: Tensor) -> tuple[Tensor, Tensor]:
        at = marked >= classes
        if bool(at.any()):
            images = images.clone()
            images[at] = trigger(images[at]).to(images.dtype)
        labels = torch.where(at, marked - classes, marked)
        return (images if moves is None else moves(images, trainer.flip, stream)), labels

    return ImageSet(train.images, labels), stamped, moves is None
