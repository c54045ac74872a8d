"""Claims of training from scratch at equal compute beyond the inherited suite."""

import copy

import pytest
import torch
from torch import Tensor

from trainables.data.images import Dataset
from trainables.defenses.base import CleanData
from trainables.defenses.scratch import ARMS, Scratch, _keep_first_stages
from trainables.defenses.super_ft import SuperFineTuning
from trainables.models.build import ModelError, build_model
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


@pytest.fixture
def clean(toy: Dataset) -> CleanData:
    """64 + 20 images."""
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(100, 120)))


def short(arm: str, **settings: object) -> Scratch:
    return Scratch(**{"arm": arm, "iterations": 3, "batch_size": 16, "long_steps": 8, **settings})  # type: ignore[arg-type]


def run(defense: Scratch, clean: CleanData, victim: Victim, trainer: Trainer) -> Classifier:
    return defense.repair(copy.deepcopy(victim.model), clean, trainer).model


# What is the same in every model of a task: the data set's normalisation, and how many batches a layer has seen.
CONSTANTS = ("normalize", "num_batches_tracked")


def trained_tensors(model: Classifier) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not any(part in name for part in CONSTANTS)}


@pytest.mark.parametrize("arm", ["same_schedule", "one_cycle", "long"])
def test_no_tensor_is_shared_with_the_victim(arm: str, clean: CleanData, toy_victim: Victim, trainer: Trainer) -> None:
    model = run(short(arm), clean, toy_victim, trainer)
    victim = trained_tensors(toy_victim.model)
    storages = {tensor.untyped_storage().data_ptr() for tensor in toy_victim.model.state_dict().values()}
    for name, tensor in trained_tensors(model).items():
        assert tensor.untyped_storage().data_ptr() not in storages
        assert not torch.equal(tensor, victim[name]), name


@pytest.mark.parametrize("arm", ["same_schedule", "one_cycle", "long"])
def test_nothing_of_the_victim_reaches_the_result(
    arm: str, clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    first = run(short(arm), clean, toy_victim, trainer)
    ruined = copy.deepcopy(toy_victim.model)
    with torch.no_grad():
        for parameter in ruined.parameters():
            parameter.fill_(float("nan"))
    second = short(arm).repair(ruined, clean, trainer).model
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_fresh_weights_are_not_those_the_victim_started_from(trainer: Trainer) -> None:
    attacker, defender = trainer.fresh_model(), trainer.fresh_model("scratch")
    assert not torch.equal(attacker.classifier.weight, defender.classifier.weight)


@pytest.mark.parametrize("n", [64, 500])
def test_same_schedule_costs_and_runs_exactly_what_super_ft_does(n: int) -> None:
    mine, theirs = Scratch(iterations=30), SuperFineTuning(iterations=30)
    assert mine.plan(n) == theirs.plan(n)
    rates = [mine.lr_at(n)(step) for step in range(60)]
    assert rates == [theirs.schedule(n)(step) for step in range(60)]


def test_one_cycle_takes_the_same_steps_under_its_own_rate() -> None:
    defense = Scratch(arm="one_cycle", iterations=50, lr_max1=0.4, warm_fraction=0.2)
    assert defense.total_steps(64) == 100
    rates = [defense.lr_at(64)(step) for step in range(100)]
    assert max(rates) == rates[20] == 0.4


def test_long_has_a_length_of_its_own_and_anneals_to_zero() -> None:
    defense = Scratch(arm="long", long_steps=40, lr_max1=0.2)
    assert [defense.total_steps(n) for n in (64, 65)] == [40, 40]
    assert Scratch(arm="long").total_steps(64) == 19_600  # 100 epochs of CIFAR-10's training set
    assert defense.lr_at(64)(0) == 0.2
    assert defense.lr_at(64)(39) < 0.001


@pytest.mark.parametrize(("forget", "kept"), [(0, 5), (1, 4), (3, 2), (5, 0)])
def test_reinit_forgets_the_last_stages_and_the_head_alone(
    forget: int, kept: int, clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    # At a rate of nearly zero what was kept stays recognisable.
    defense = short("reinit", reinit_stages=forget, lr_base=1e-12, lr_max1=1e-12, lr_max2=1e-12)
    model = run(defense, clean, toy_victim, trainer)

    def parameters(stage: torch.nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in stage.parameters()])

    same = [
        torch.allclose(parameters(mine), parameters(theirs), atol=1e-6)
        for mine, theirs in zip(model.stages, toy_victim.model.stages, strict=True)
    ]
    assert same == [True] * kept + [False] * forget
    assert not torch.allclose(model.classifier.weight, toy_victim.model.classifier.weight, atol=1e-6)


def test_what_is_kept_sees_images_as_it_learned_to(clean: CleanData, toy_victim: Victim, trainer: Trainer) -> None:
    """A victim of another task brings its own normalisation."""
    theirs = copy.deepcopy(toy_victim.model)
    theirs.normalize.mean.add_(0.2)
    theirs.normalize.std.mul_(3.0)
    defense = short("reinit", reinit_stages=0, lr_base=1e-12, lr_max1=1e-12, lr_max2=1e-12)
    mine = defense.repair(copy.deepcopy(theirs), clean, trainer).model
    assert torch.equal(mine.normalize.mean, theirs.normalize.mean)
    assert torch.equal(mine.normalize.std, theirs.normalize.std)


def test_a_neck_with_weights_stays_where_all_stages_do() -> None:
    trained, fresh, none_left = (
        build_model("vit_small", num_classes=4, width=16, image_size=16, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1, 2)
    )
    assert any(True for _ in trained.neck.parameters())
    with torch.no_grad():
        for parameter in trained.neck.parameters():
            parameter.add_(1.0)
    _keep_first_stages(fresh, trained, forget=0)
    _keep_first_stages(none_left, trained, forget=1)
    theirs, kept, other = (model.neck.state_dict() for model in (trained, fresh, none_left))
    assert all(torch.equal(kept[name], tensor) for name, tensor in theirs.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_returns_a_model_that_was_trained(
    arm: str, clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    found = short(arm).repair(copy.deepcopy(toy_victim.model), clean, trainer)
    assert len(found.history.loss) == short(arm).total_steps(64)
    assert not any(module.training for module in found.model.modules())


@pytest.mark.parametrize(
    "settings",
    [
        {"arm": "short"},
        {"warm_fraction": 1.0},
        {"long_steps": 0},
        {"reinit_stages": -1},
        {"lr_max1": 0.0},
        {"iterations": 0},
        {"momentum": 1.0},
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        Scratch(**settings)  # type: ignore[arg-type]


def test_more_stages_than_the_model_has_are_refused_before_any_work() -> None:
    model = build_model("preact_resnet18", num_classes=10, width=2)
    Scratch(arm="reinit", reinit_stages=len(model.stages)).check(model, 100)
    with pytest.raises(ModelError, match=r"defense.scratch.reinit_stages must be at most 5, the stages of this model"):
        Scratch(arm="reinit", reinit_stages=len(model.stages) + 1).check(model, 100)
