"""The retuning attack: whether a few poisoned images in a short fine-tuning bring the backdoor back (P-ASR).

After the public code of "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense" (2024,
arXiv:2410.09838), which calls the ASR of a repaired model O-ASR and that after this attack P-ASR: 2 % of the training
set, 5 of these images poisoned, 5 epochs of SGD at 0.01 without weight decay in batches of 128.

It differs from `reinjection` in three ways: the attacker has few images, each is augmented once and for all, and the
draw of the images decides much, so several are made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from trainables.attacks.base import Attack
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import DataError, ImageSet, TriggeredSet, augment
from trainables.evaluation.aftermath.further_training import follow, report_part
from trainables.evaluation.aftermath.settings import Retuning
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import generator_for
from trainables.training.loop import Counters, Optimizer
from trainables.training.trainer import Trainer

EPOCHS, BATCH_SIZE, LR = 5, 128, 0.01
MEASURED_STEPS = (0, 1, 2, 5, 10, 20, 40)


def check_retuning(settings: Retuning, attack: Attack, n: int) -> None:
    """Refuse, before any work, what a training set of ``n`` images does not allow (DataError)."""
    if not attack.implants_backdoor:
        raise DataError(
            f"aftermath.retuning: attack {attack.name} has no trigger to inject again; leave it out of attacks, or "
            "leave retuning out"
        )
    if not images_held(settings, n):
        raise DataError(
            f"aftermath.retuning.share: {settings.share:g} of {n} training images is none; use at least {0.5 / n:.2g}"
        )
    if max(settings.counts) > images_held(settings, n):
        raise DataError(
            f"aftermath.retuning.counts: {max(settings.counts)} poisoned images were asked for, and share "
            f"{settings.share:g} of {n} is {images_held(settings, n)}; use less, or a larger share"
        )


def images_held(settings: Retuning, n: int) -> int:
    """Images that the attacker holds of a training set of ``n``."""
    return round(settings.share * n)


def measured_steps(settings: Retuning, n: int) -> tuple[int, ...]:
    """The steps after which is measured, ascending, the last step included: 40 on CIFAR-10."""
    total = EPOCHS * max(1, -(-images_held(settings, n) // BATCH_SIZE))
    return (*(step for step in MEASURED_STEPS if step < total), total)


def planned_work(settings: Retuning, n: int, n_measured: int) -> Counters:
    """The work for one model, before it is done.

    Args:
        n: the attacker's training images.
        n_measured: clean and triggered test images of the report half.
    """
    runs, measured = len(settings.counts) * settings.draws, measured_steps(settings, n)
    trained = runs * measured[-1] * min(BATCH_SIZE, images_held(settings, n))
    return Counters(runs * measured[-1], trained + runs * len(measured) * n_measured, trained)


@exact_float32()
def retune(
    settings: Retuning,
    model: Classifier,
    *,
    attack: Attack,
    trigger: Trigger,
    train: ImageSet,
    test: ImageSet,
    triggered: TriggeredSet,
    trainer: Trainer,
    seed: int,
) -> list[dict[str, Any]]:
    """Every count on every draw, each on a copy of ``model``; arguments as for `reinjection.reinject`.

    Returns:
        JSON-able records: ``poisoned`` and ``images`` (how many carry the trigger, and of how many), ``draw``,
        ``o_asr``, ``p_asr``, ``accuracy_start``, ``accuracy_end``, ``diverged``, and what was measured in between:
        ``steps``, ``asr``, ``clean_accuracy``.
    """
    trigger = copy.deepcopy(trigger).to(trainer.device).eval()
    halves, records = report_part(test, triggered), []
    for draw, poisoned, data in _drawn(settings, attack, trigger, train, trainer, seed):
        course = follow(
            copy.deepcopy(model),
            data,
            halves,
            trainer,
            measured_steps(settings, len(train)),
            purpose=f"retuning-{draw}",
            lr=LR,
            batch_size=BATCH_SIZE,
            optimizer=Optimizer("sgd", momentum=0.9, weight_decay=0.0),
        )
        asr, accuracy = ([round(value, 5) for value in values] for values in (course.asr, course.clean_accuracy))
        records.append(
            {
                "poisoned": poisoned,
                "images": len(data),
                "draw": draw,
                "o_asr": asr[0],
                "p_asr": asr[-1],
                "accuracy_start": accuracy[0],
                "accuracy_end": accuracy[-1],
                "diverged": course.diverged,
                "steps": list(course.steps),
                "asr": asr,
                "clean_accuracy": accuracy,
            }
        )
    return records


def _drawn(
    settings: Retuning, attack: Attack, trigger: Trigger, train: ImageSet, trainer: Trainer, seed: int
) -> Iterator[tuple[int, int, ImageSet]]:
    """(draw, number of poisoned images, the attacker's images): the first of a draw carry the trigger, unaugmented."""
    for draw in range(settings.draws):
        stream = generator_for(seed, "retuning", draw)
        held = train.subset(torch.randperm(len(train), generator=stream)[: images_held(settings, len(train))])
        usual = trainer.augmentation()
        offsets = torch.randint(0, 2 * usual.padding + 1, (len(held), 2), generator=stream).to(trainer.device)
        flips = (torch.rand(len(held), generator=stream) < 0.5).to(trainer.device) if usual.flip else None
        moved = augment(held.images, offsets, flips, padding=usual.padding)
        for count in settings.counts:
            images, labels = moved.clone(), held.labels.clone()
            if count:
                images[:count] = stamp(trigger, held.images[:count])
                labels[:count] = attack.targets(held.labels[:count], trainer.num_classes)
            yield draw, count, ImageSet(images, labels)
