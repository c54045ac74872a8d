"""Claims of super-fine-tuning beyond the inherited suite; its schedule is in test_schedules.py."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject
from trainables.data.images import DataError, Dataset, ImageSet
from trainables.defenses.base import CleanData, Repair
from trainables.defenses.ft import FineTuning
from trainables.defenses.super_ft import SuperFineTuning
from trainables.training.loop import DivergedError
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

Runner = Callable[..., Repair]


@pytest.fixture
def clean(toy: Dataset) -> CleanData:
    """64 + 20 images."""
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(100, 120)))


@pytest.fixture
def repair(clean: CleanData, toy_victim: Victim, trainer: Trainer) -> Runner:
    """Repairs a copy of the victim with settings over a short schedule."""

    def run(**settings: object) -> Repair:
        defense = SuperFineTuning(**{"iterations": 4, "batch_size": 16, **settings})  # type: ignore[arg-type]
        return defense.repair(copy.deepcopy(toy_victim.model), clean, trainer)

    return run


def weights(repair: Repair) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in repair.model.state_dict().values()])


def test_no_cycles_are_the_identity(toy: Dataset, toy_victim: Victim) -> None:
    assert_identity(Subject("super_ft", toy_victim, toy), cycles1=0.0, cycles2=0.0)


def test_rates_that_were_used_are_those_of_the_schedule(repair: Runner) -> None:
    schedule = SuperFineTuning(iterations=4, batch_size=16).schedule(64)
    assert repair().history.lr == [schedule(step) for step in range(8)]


def test_constant_shape_is_fine_tuning_bit_for_bit(
    repair: Runner,
    clean: CleanData,
    toy_victim: Victim,
    trainer: Trainer,
) -> None:
    cyclic = repair(phases=1, shape="constant", lr_max1=0.05, iterations=6)
    plain = FineTuning(lr=0.05, steps=6, schedule="constant", batch_size=16).repair(
        copy.deepcopy(toy_victim.model), clean, trainer
    )
    assert torch.equal(weights(cyclic), weights(plain))


def test_two_runs_are_bit_equal_and_another_seed_is_not(
    repair: Runner,
    clean: CleanData,
    toy_victim: Victim,
    trainer: Trainer,
) -> None:
    first = weights(repair())
    assert torch.equal(first, weights(repair()))
    trainer.seed = 1
    assert not torch.equal(first, weights(repair()))


def test_inverse_momentum_falls_from_095_to_085_while_the_rate_climbs() -> None:
    settings = SuperFineTuning(iterations=100, momentum_mode="inverse")
    schedule = settings.schedule(64)
    momentum = [settings.momentum_at(schedule)(step) for step in range(100)]
    assert max(momentum) == pytest.approx(0.95)
    assert min(momentum) == pytest.approx(0.85)
    assert momentum[0] == pytest.approx(0.95)
    assert momentum[50] == pytest.approx(0.85)
    assert all(a > b for a, b in itertools.pairwise(momentum[:51]))
    assert all(a < b for a, b in itertools.pairwise(momentum[50:]))


def test_masses_are_noted_with_the_momentum_that_was_used(repair: Runner) -> None:
    # Rates of a period of 4: base, middle, peak, middle.
    first = 3e-4 + 2 * (3e-4 + 0.1) / 2 + 0.1
    assert repair().notes["lr_mass_1"] == pytest.approx(first / 0.1)
    assert repair(momentum=0.0).notes["lr_mass_1"] == pytest.approx(first)
    inverse = 3e-4 / 0.05 + 2 * (3e-4 + 0.1) / 2 / 0.10 + 0.1 / 0.15
    assert repair(momentum_mode="inverse").notes["lr_mass_1"] == pytest.approx(inverse)
    assert set(repair(phases=3).notes) == {"lr_mass_1", "lr_mass_2", "lr_mass_3"}


def test_best_on_validation_is_never_worse_than_the_ends_of_the_triangles(
    repair: Runner,
    clean: CleanData,
    trainer: Trainer,
) -> None:
    def accuracy(found: Repair, data: ImageSet) -> float:
        return trainer.accuracy(found.model, data)

    settings = {"cycles1": 3.0, "lr_max1": 0.3, "cooldown_steps": 4, "cooldown_lr": 0.5}
    chosen = accuracy(repair(select="val", **settings), clean.validation)
    assert chosen >= accuracy(repair(**settings), clean.validation)
    for cycles in (1.0, 2.0, 3.0):
        assert chosen >= accuracy(repair(phases=1, cycles1=cycles, lr_max1=0.3), clean.validation)


def test_best_on_validation_without_validation_images_is_refused(
    clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    none = CleanData(clean.train, clean.validation.subset(torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(DataError, match="select val needs validation images"):
        SuperFineTuning(iterations=4, select="val").repair(copy.deepcopy(toy_victim.model), none, trainer)
    with pytest.raises(DataError, match="select val needs validation images"):  # before any victim is trained
        SuperFineTuning(select="val").check(toy_victim.model, 20, 0)
    SuperFineTuning().check(toy_victim.model, 20, 0)


def test_a_rate_beyond_all_bounds_diverges_by_name(repair: Runner) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        repair(lr_max1=1e12, iterations=40)


def test_clipping_keeps_such_a_rate_finite(repair: Runner) -> None:
    assert torch.isfinite(weights(repair(lr_max1=100.0, grad_clip=1e-4))).all()


def test_evaluating_batch_normalisation_keeps_its_statistics(repair: Runner, toy_victim: Victim) -> None:
    repaired, before = repair(bn_mode="eval").model.state_dict(), toy_victim.model.state_dict()
    for name, tensor in repaired.items():
        if "running" in name:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_base": 0.0},
        {"lr_max1": -0.1},
        {"lr_max3": 0.0},
        {"iterations": 0},
        {"cycles1": -1.0},
        {"phases": 4},
        {"up_fraction": 1.0},
        {"shape": "square"},
        {"granularity": "batch"},
        {"length_unit": "minute"},
        {"peak_decay": 0.0},
        {"cooldown_steps": -1},
        {"cooldown_lr": 0.0},
        {"grad_clip": 0.0},
        {"bn_mode": "frozen"},
        {"scope": "classifier"},
        {"select": "best_asr"},
        {"momentum": 1.0},
        {"optimizer": "lion"},
        {"batch_size": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        SuperFineTuning(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_inverse_momentum_is_refused_where_there_is_none(optimizer: str) -> None:
    with pytest.raises(ValueError, match="momentum_mode inverse needs optimizer sgd or nesterov"):
        SuperFineTuning(momentum_mode="inverse", optimizer=optimizer)  # type: ignore[arg-type]
