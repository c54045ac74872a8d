"""No defense: the undefended point of every figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainables.defenses.base import Defense, NoData, Repair, register
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer


@register("none")
@dataclass(frozen=True)
class NoDefense(Defense):
    """Return the model as it is."""

    owns: ClassVar[type[NoData]] = NoData

    def repair(self, model: Classifier, assets: NoData, trainer: Trainer) -> Repair:
        return Repair(model)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        return Counters()
