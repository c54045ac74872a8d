"""Methods whose steps a graph may hold do under the stand-in for capture, bit by bit, what they do without."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from superft.testing.attack_subject import carry_out
from superft.testing.defense_subject import Subject, same
from superft.testing.toy import toy_dataset, toy_spec
from tests.pretend.capture import RecordedGraphs
from trainables.data.images import Dataset
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.victims.make import obtain_victim
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim

CPU = torch.device("cpu")
# Steps enough to see replays, few enough for a test.
FEWEST = 5
# Adam divides its rate in float64, and a graph holds it in float32: to the last bit where that holds it exactly.
RATE = 2.0**-11
STEPS: dict[str, dict[str, Any]] = {
    "abl": {"tuning_epochs": 2, "finetuning_epochs": 1, "unlearning_epochs": 1, "batch_size": 16},
    "fst": {"steps": 6},
    "ft": {"steps": 6},
    "ft_sam": {"steps": 6},
    "nad": {"steps": 6, "teacher_steps": 6},
    "pam": {"steps": 6},
    "rnp": {"unlearn_steps": 2, "recover_steps": 6},
    "sau": {"steps": 6, "attack_steps": 2, "lr": RATE},
    "super_ft": {"iterations": 4},
}
RECIPE = TrainingRecipe(epochs=1, batch_size=16, lr=0.05)
ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "badnets": ({}, "preact_resnet18"),
    "wanet": ({}, "preact_resnet18"),
    "sbl": ({"variant": "ewc", "user_epochs": 12.0, "user_batch_size": 8}, "preact_resnet18"),
    "badencoder": (
        {"pretrain_epochs": 1.0, "pretrain_batch": 16, "pretrain_lr": RATE, "head_epochs": 1.0, "head_lr": RATE,
         "inject_epochs": 1.0, "inject_batch": 16, "reference_must_be_right": False},
        "encoder_resnet18",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return toy_dataset(train=100, test=20)


@pytest.fixture(scope="module")
def victim(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return obtain_victim(toy_spec("badnets", width=2), data, Store(tmp_path_factory.mktemp("store")), CPU)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraphs]:
    """Those of the trainings that were captured."""
    made: list[RecordedGraphs] = []

    def graphs_on(_device: torch.device) -> RecordedGraphs:
        made.append(RecordedGraphs())
        return made[-1]

    monkeypatch.setattr("trainables.training.captured_step.FEWEST_STEPS", FEWEST)
    monkeypatch.setattr("trainables.training.captured_step.graphs_on", graphs_on)
    return made


def replays(graphs: list[RecordedGraphs]) -> int:
    found = sum(graph.replays for graph in graphs)
    graphs.clear()
    return found


@pytest.mark.parametrize("name", STEPS)
def test_defense(
    name: str, victim: Victim, data: Dataset, graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(name, victim, data)
    defense = subject.create(**STEPS[name])
    captured, _ = subject.run(defense)
    assert replays(graphs) > 0
    monkeypatch.setenv("SUPERFT_STEP", "eager")
    eager, _ = subject.run(defense)
    assert replays(graphs) == 0
    assert same(captured.state, eager.state)
    assert captured.trainer.counters == eager.trainer.counters
    assert captured.repair.history == eager.repair.history


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, data: Dataset, graphs: list[RecordedGraphs], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, model = ATTACKS[name]
    spec: VictimSpec = dataclasses.replace(toy_spec(name, width=2, **settings), model=model, recipe=RECIPE)
    captured = carry_out(spec, data)
    assert replays(graphs) > 0
    monkeypatch.setenv("SUPERFT_STEP", "eager")
    eager = carry_out(spec, data)
    assert replays(graphs) == 0
    assert captured.digest() == eager.digest()
