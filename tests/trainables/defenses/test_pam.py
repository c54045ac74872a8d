"""Claims of PAM: the gradient is that of a point nearer to the backdoored weights; without a move it is fine-tuning."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from search_spaces.pam import PAPER, SPACE
from trainables.data.images import Dataset, to_float
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES, CleanData, Defense
from trainables.defenses.ft import FineTuning
from trainables.defenses.pam import PathAwareMinimization, towards
from trainables.evaluation.aftermath.settings import Aftermath, Connectivity, Retuning
from trainables.job import Cell
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training.loop import Counters
from trainables.training.recipes import RECIPES
from trainables.training.trainer import Trainer
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16, "lr": 0.05}


def clean(toy: Dataset, n: int = 64) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(n)), toy.train.subset(torch.arange(64, 80)))


def repaired(defense: Defense, victim: Victim, assets: CleanData, trainer: Trainer) -> dict[str, Tensor]:
    return dict(defense.repair(copy.deepcopy(victim.model), assets, trainer).model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def parameters_of(model: nn.Module, state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[name].flatten() for name, _ in model.named_parameters()])


def test_move_of_the_point_by_hand() -> None:
    (move,) = towards([torch.tensor([3.0, 4.0])], [torch.zeros(2)], rho=0.5, mode="length")
    torch.testing.assert_close(move, torch.tensor([0.3, 0.4]))
    (move,) = towards([torch.tensor([3.0, 4.0])], [torch.zeros(2)], rho=0.5, mode="fraction")
    torch.testing.assert_close(move, torch.tensor([1.5, 2.0]))


def test_move_has_one_length_over_all_tensors_together() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), (2, 2, 2))
    there, here = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    moves = towards(there, here, rho=0.7, mode="length")
    assert float(torch.cat([move.flatten() for move in moves]).norm()) == pytest.approx(0.7, rel=1e-5)


def test_at_the_backdoored_weights_themselves_nothing_moves() -> None:
    (move,) = towards([torch.ones(3)], [torch.ones(3)], rho=0.5, mode="length")
    assert torch.equal(move, torch.zeros(3))


@pytest.mark.parametrize("rho_mode", ["length", "fraction"])
def test_without_a_move_it_is_fine_tuning_bit_by_bit(
    rho_mode: str, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    common: dict[str, Any] = {**SHORT, "momentum": 0.1, "weight_decay": 0.0, "schedule": "constant"}
    plain = repaired(FineTuning(**common), toy_victim, clean(toy), trainer)
    still = PathAwareMinimization(rho=0.0, rho_mode=rho_mode, **common)  # type: ignore[arg-type]
    assert same(repaired(still, toy_victim, clean(toy), trainer), plain)
    moved = PathAwareMinimization(rho=0.5, rho_mode=rho_mode, **common)  # type: ignore[arg-type]
    assert not same(repaired(moved, toy_victim, clean(toy), trainer), plain)


@pytest.mark.parametrize("rho_mode", ["length", "fraction"])
def test_second_step_takes_its_gradient_at_the_moved_point(
    rho_mode: str, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    """Two steps by hand, both on the same two images; the first is fine-tuning's: there is no way back yet."""
    assets, lr, rho = clean(toy, 2), 0.05, 0.3
    settings: dict[str, Any] = {"batch_size": 2, "lr": lr, "momentum": 0.0, "augment": False, "bn_at": "home"}
    defense = PathAwareMinimization(steps=2, rho=rho, rho_mode=rho_mode, **settings)  # type: ignore[arg-type]
    found = repaired(defense, toy_victim, assets, trainer)

    model = copy.deepcopy(toy_victim.model).train()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    now = {name: tensor.clone() for name, tensor in start.items()}
    images = to_float(assets.train.images)
    for _ in range(2):
        distance = torch.stack([(start[name] - now[name]).square().sum() for name in now]).sum().sqrt()
        share = rho if rho_mode == "fraction" else rho / (float(distance) + 1e-12)
        point = {name: (now[name] + share * (start[name] - now[name])).requires_grad_() for name in now}
        loss = functional.cross_entropy(functional_call(model, point, (images,)), assets.train.labels)
        for name, gradient in zip(point, torch.autograd.grad(loss, list(point.values())), strict=True):
            now[name] = now[name] - lr * gradient
    at_home = torch.cat([tensor.flatten() for tensor in now.values()])
    went = (at_home - torch.cat([tensor.flatten() for tensor in start.values()])).norm()
    assert float((parameters_of(model, found) - at_home).norm() / went) < 1e-3


def test_statistics_are_those_of_the_passes_or_of_the_weights_in_the_end(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    at_moved, at_home = (
        repaired(PathAwareMinimization(bn_at=where, **SHORT), toy_victim, clean(toy), trainer)  # type: ignore[arg-type]
        for where in ("moved", "home")
    )
    parameters = {name for name, _ in toy_victim.model.named_parameters()}
    for name, tensor in at_moved.items():
        if name in parameters:
            assert torch.equal(tensor, at_home[name])
    statistics = [name for name in at_moved if name.endswith("running_mean")]
    assert statistics
    assert not any(torch.equal(at_moved[name], at_home[name]) for name in statistics)
    # Renewed once more, those at home stay what they are.
    model = copy.deepcopy(toy_victim.model)
    model.load_state_dict(at_home)
    renewed = FineTuning(scope="bn_statistics", steps=1).repair(model, clean(toy), trainer).model.state_dict()
    assert all(torch.equal(at_home[name], renewed[name]) for name in statistics)


def test_costs_what_fine_tuning_costs_and_the_pass_at_home_is_counted() -> None:
    assert PathAwareMinimization(**SHORT).plan(64) == FineTuning(**SHORT).plan(64)
    home = PathAwareMinimization(bn_at="home", **SHORT).plan(64)
    assert home == Counters(steps=6, forward_samples=6 * 16 + 64, backward_samples=6 * 16)


def test_a_share_of_more_than_the_whole_way_is_refused() -> None:
    DEFENSES.create("pam", {"rho": 1.5})
    with pytest.raises(SettingError, match=r"rho is a share of the way in rho_mode fraction: in \[0, 1\], got 1\.5"):
        DEFENSES.create("pam", {"rho": 1.5, "rho_mode": "fraction"})


def test_zero_steps_return_the_input(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    defense = PathAwareMinimization(steps=0, bn_at="home")
    assert same(repaired(defense, toy_victim, clean(toy), trainer), dict(toy_victim.model.state_dict()))
    assert trainer.counters == Counters() == defense.plan(64)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_way_back_is_longer_than_from_fine_tuning_and_five_images_bring_less_back(seed: int, tmp_path: Path) -> None:
    """The paper's claim, at equal steps and rate, on digits: barrier 0.72, 0.56, 0.76 against 0.16, 0.35, 0.31, and
    P-ASR 0.03, 0.69, 0.04 against 1.00, 0.92, 0.99, at 0.01 to 0.04 less accuracy.

    rho is 2: at the published 0.5 seeds differ in sign. With statistics of the moved points (the default, as published)
    the same weights had an accuracy of 0.66 to 0.82 only.
    """
    bench = Workbench(Store(tmp_path), torch.device("cpu"))
    victim = VictimSpec(attack="badnets", model="airbench_cnn", recipe=RECIPES["quick"], width=8, seed=seed)
    cell = Cell(DataSource("digits", image_size=16), victim, "pam", clean_fraction=0.1)
    asked = Aftermath(retuning=Retuning(counts=(5,), draws=3), connectivity=Connectivity())
    common = {"lr": 0.1, "steps": 1000, "bn_at": "home"}
    plain, aware = (bench.run(cell, {**common, "rho": rho}, aftermath=asked).row() for rho in (0.0, 2.0))
    assert aware["asr"] < 0.1
    assert aware["clean_accuracy"] > 0.9
    barriers = [json.loads(row["connectivity"])[1]["barrier"] for row in (plain, aware)]
    assert barriers[1] > barriers[0] + 0.1
    regained = [median(run["p_asr"] for run in json.loads(row["retuning"])) for row in (plain, aware)]
    assert regained[1] < regained[0] - 0.1


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = PathAwareMinimization()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert default.steps == 1800
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
