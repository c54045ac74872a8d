"""The models of the toy task that defenses are tried on, trained once per process. Shared: do not modify."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from superft.testing.threads import one_thread
from superft.testing.toy import toy_dataset, toy_spec
from trainables.data.images import Dataset
from trainables.models.classifier import Classifier
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import make_trainer, obtain_victim
from trainables.victims.victim import Victim

CPU = torch.device("cpu")


@functools.cache
def toy() -> Dataset:
    """200 + 100 images of 10 shapes, 16 pixels."""
    return toy_dataset()


def obtain(store: Store, model: str = "preact_resnet18") -> Victim:
    """A BadNets victim of width 2 that knows its training set somewhat: a defense sees accuracies and a trigger."""
    recipe = TrainingRecipe(epochs=15, batch_size=32, lr=0.05, schedule="one_cycle")
    with one_thread():
        return obtain_victim(toy_spec("badnets", model=model, recipe=recipe), toy(), store, CPU)


@functools.cache
def victim(model: str = "preact_resnet18") -> Victim:
    """The victim that every suite of this process shares."""
    with tempfile.TemporaryDirectory() as folder:
        return obtain(Store(Path(folder)), model)


@functools.cache
def accurate_model(model: str = "preact_resnet18") -> Classifier:
    """A clean model of width 2 that is right about most of its training images."""
    recipe = TrainingRecipe(epochs=25, batch_size=32, lr=0.05, schedule="one_cycle")
    with one_thread():
        trainer = make_trainer(toy_spec("clean", model=model), toy(), CPU, seed=0)
        return trainer.train_from_scratch(toy().train, recipe)
