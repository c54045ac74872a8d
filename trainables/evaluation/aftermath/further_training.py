"""Training a repaired model further, and what becomes of ASR and clean accuracy meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainables.data.images import ImageSet, TriggeredSet
from trainables.evaluation.metrics import report_half
from trainables.models.classifier import Classifier
from trainables.training import schedules
from trainables.training.loop import DivergedError
from trainables.training.predict import predict
from trainables.training.trainer import Trainer


@dataclass(frozen=True)
class Course:
    """Rates on the report half after some steps; step 0 is the model as it was handed over.

    Args:
        steps: at which was measured, ascending, from 0.
        asr, clean_accuracy: there, fractions in [0, 1].
        diverged: the training left the finite numbers after the last measured step; the rest is missing.
    """

    steps: tuple[int, ...]
    asr: tuple[float, ...]
    clean_accuracy: tuple[float, ...]
    diverged: bool


def follow(
    model: Classifier,
    data: ImageSet,
    halves: tuple[ImageSet, TriggeredSet],
    trainer: Trainer,
    measured: Sequence[int],
    *,
    lr: float,
    **settings: Any,
) -> Course:
    """Train ``model`` in place to the last of the ``measured`` steps, at a constant rate.

    Args:
        halves: what is measured on, see `report_part`.
        settings: of `Trainer.fit`.
    """
    due, seen = set(measured), list[tuple[int, float, float]]()

    def measure(step: int) -> None:
        if step in due:
            # Training goes on afterwards: `predict` puts every layer back into its mode.
            seen.append((step, *rates(model, *halves, trainer)))

    measure(0)
    diverged = False
    try:
        trainer.fit(
            model,
            data,
            steps=max(measured),
            lr_at=schedules.constant(lr),
            after_step=lambda step: measure(step + 1),
            **settings,
        )
    except DivergedError:
        diverged = True
    steps, asr, accuracy = zip(*seen, strict=True)
    return Course(steps, asr, accuracy, diverged)


def report_part(test: ImageSet, triggered: TriggeredSet) -> tuple[ImageSet, TriggeredSet]:
    """What people read of both test sets: the search never saw it."""
    mask = report_half(len(test))
    chosen = mask[triggered.sources.cpu()].nonzero()[:, 0].to(triggered.images.device)
    fields = (triggered.images, triggered.labels, triggered.targets, triggered.sources)
    return test.subset(mask.nonzero()[:, 0]), TriggeredSet(*(field[chosen] for field in fields))


def report_sizes(test: ImageSet, triggered_sources: Tensor) -> int:
    """Clean and triggered test images of the report half, together."""
    mask = report_half(len(test))
    return int(mask.sum()) + int(mask[triggered_sources.cpu()].sum())


def rates(model: Classifier, test: ImageSet, triggered: TriggeredSet, trainer: Trainer) -> tuple[float, float]:
    """ASR and clean accuracy."""
    stamped = predict(model, triggered.images, precision=trainer.precision, counters=trainer.counters)
    clean = predict(model, test.images, precision=trainer.precision, counters=trainer.counters)
    return (
        int((stamped == triggered.targets).sum()) / len(stamped),
        int((clean == test.labels).sum()) / len(clean),
    )
