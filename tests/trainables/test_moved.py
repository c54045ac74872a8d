"""A row says whether its repair moved the model at all."""

import dataclasses
from typing import Any

import pytest
import torch

from trainables.columns import RESULT_COLUMNS
from trainables.data.images import Dataset
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.trial import run_trial
from trainables.trial_result import TrialResult
from trainables.victims.victim import Victim


def run(victim: Victim, toy: Dataset, defense: str, **settings: Any) -> TrialResult:
    cell = Cell(DataSource("toy"), victim.spec, defense, clean_fraction=0.3)
    return run_trial(cell, settings, dataset=toy, victim=victim, device=torch.device("cpu"))


def test_a_rate_of_nothing_moves_nothing_and_a_high_one_does(toy: Dataset, toy_victim: Victim) -> None:
    still = run(toy_victim, toy, "ft", lr=1e-7, steps=3)
    assert still.moved is False
    assert still.displacement_share is not None
    assert still.displacement_share < 1e-4
    far = run(toy_victim, toy, "super_ft", iterations=4, lr_max1=1.0)
    assert far.moved is True
    assert far.displacement is not None
    assert still.displacement is not None
    assert far.displacement > 100 * still.displacement


def test_no_defense_is_not_said_to_have_moved_nothing(toy: Dataset, toy_victim: Victim) -> None:
    found = run(toy_victim, toy, "none")
    assert (found.moved, found.displacement, found.loss_rise) == (None, None, None)


def test_a_trained_head_alone_is_not_judged_by_its_distance(toy: Dataset, toy_victim: Victim) -> None:
    found = run(toy_victim, toy, "ft", scope="classifier", steps=2, lr=1.0)
    assert found.moved is None
    assert found.displacement is not None
    assert found.displacement > 0


@pytest.mark.parametrize("name", ["moved", "loss_rise", "displacement", "displacement_share"])
def test_the_columns_are_typed(name: str) -> None:
    column = next(column for column in RESULT_COLUMNS if column.name == name)
    assert column.kind == ("flag" if name == "moved" else "number")
    assert name in {item.name for item in dataclasses.fields(TrialResult)}
