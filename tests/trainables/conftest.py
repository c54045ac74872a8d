"""What tests of single methods share beside ``tests/conftest.py``."""

import pytest
import torch

from tests.toy import toy_spec
from trainables.data import Dataset
from trainables.models import Classifier
from trainables.recipes import TrainingRecipe
from trainables.victims import make_trainer


@pytest.fixture(scope="session")
def learned(toy: Dataset) -> Classifier:
    """A clean model of width 2 that is right about most of its training images. Shared: do not modify."""
    recipe = TrainingRecipe(epochs=25, batch_size=32, lr=0.05, schedule="one_cycle")
    return make_trainer(toy_spec("clean"), toy, torch.device("cpu"), seed=0).train_from_scratch(toy.train, recipe)
