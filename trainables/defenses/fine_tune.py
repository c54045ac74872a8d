"""Fine-tuning by SGD on a defender's clean images: what methods with a loss or a step of their own have in common."""

from __future__ import annotations

from typing import Any, Protocol

from trainables.defenses.base import CleanData, images_per_step
from trainables.models.classifier import Classifier
from trainables.training.loop import History, Optimizer, Schedule
from trainables.training.trainer import Trainer


class BySgd(Protocol):
    """The settings of such a method: steps, learning rate, batch, momentum, weight decay, augmentation."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def augment(self) -> bool: ...
    def lr_at(self) -> Schedule: ...


def fine_tune(method: BySgd, model: Classifier, assets: CleanData, trainer: Trainer, **own: Any) -> History:
    """Train ``model`` in place as the settings of ``method`` say.

    Args:
        own: what sets the method apart: settings of `loop.fit` such as ``loss``, ``perturb``, ``after_step``.
    """
    return trainer.fit(
        model,
        assets.train,
        steps=method.steps,
        lr_at=method.lr_at(),
        batch_size=images_per_step(method.batch_size, len(assets.train)),
        optimizer=Optimizer("sgd", method.momentum, method.weight_decay),
        augmentation=trainer.augmentation() if method.augment else None,
        **own,
    )
