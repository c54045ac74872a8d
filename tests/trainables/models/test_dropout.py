"""Masks come from a stream of their own, and differ between fresh models and between repairs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainables import trial
from trainables.data.images import Dataset
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.models.encoder import PrivateDropout, seed_dropout
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def masks(model: nn.Module) -> Tensor:
    dropped: Tensor = copy.deepcopy(model).train()(torch.ones(64))
    return dropped


def test_a_stream_begins_where_its_generator_says() -> None:
    one, other = (nn.Sequential(PrivateDropout(0.5)) for _ in range(2))
    assert torch.equal(masks(one), masks(other))  # a fresh module knows of no seed
    seed_dropout(one, torch.Generator().manual_seed(1))
    seed_dropout(other, torch.Generator().manual_seed(2))
    assert not torch.equal(masks(one), masks(other))
    seed_dropout(other, torch.Generator().manual_seed(1))
    assert torch.equal(masks(one), masks(other))


def test_fresh_models_of_two_purposes_drop_other_values(trainer: Trainer) -> None:
    trainer.new_model = lambda _: nn.Sequential(PrivateDropout(0.5))  # type: ignore[assignment,return-value]
    assert torch.equal(masks(trainer.fresh_model("a")), masks(trainer.fresh_model("a")))
    assert not torch.equal(masks(trainer.fresh_model("a")), masks(trainer.fresh_model("b")))


def test_repairs_of_two_defenders_drop_other_values(
    toy: Dataset, toy_victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[int]()
    monkeypatch.setattr(trial, "seed_dropout", lambda _, generator: begun.append(generator.initial_seed()))
    for seed in (0, 1, 0):
        cell = Cell(DataSource("toy"), toy_victim.spec, "none", defense_seed=seed)
        trial.run_trial(cell, {}, dataset=toy, victim=toy_victim, device=torch.device("cpu"))
    assert begun[0] == begun[2] != begun[1]
