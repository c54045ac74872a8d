"""A repair as its result alone: a copy is repaired, and nothing that ran before in the process has a say in it."""

from __future__ import annotations

import copy

import torch

from trainables.defenses.base import Assets, Defense, Repair
from trainables.machine.float32 import exact_float32
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed
from trainables.training.loop import DivergedError
from trainables.training.trainer import Trainer


@exact_float32()
def carry_out(defense: Defense, model: Classifier, assets: Assets, trainer: Trainer) -> Repair:
    """The repair of a copy of ``model``; the model itself stays as it is.

    Dropout and stochastic depth of other people's models draw from torch's global stream: during the repair that one
    begins anew from the trainer's seed, and afterwards it goes on where it was.

    Raises:
        DivergedError: the training, or what it led to, left the finite numbers.
    """
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(trainer.seed, "global"))
        repair = defense.repair(copy.deepcopy(model), assets, trainer)
    for name, value in repair.model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DivergedError(f"the repaired model's {name} is not finite")
    return repair
