"""Claims of conventional fine-tuning beyond the inherited suite."""

import copy

import pytest
import torch
from torch import Tensor, nn

from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject
from trainables.data.images import Dataset, to_float
from trainables.defenses.base import CleanData
from trainables.defenses.ft import SCOPES, FineTuning, in_scope
from trainables.training.loop import Optimizer
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


@pytest.fixture
def clean(toy: Dataset) -> CleanData:
    """100 + 20 images."""
    return CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 120)))


def changed_tensors(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 0, "scope": "classifier"}])
def test_no_length_is_the_identity(settings: dict[str, object], toy: Dataset, toy_victim: Victim) -> None:
    assert_identity(Subject("ft", toy_victim, toy), **settings)


def test_classifier_scope_leaves_every_other_tensor_and_buffer_bit_identical(
    clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    model = copy.deepcopy(toy_victim.model)
    before = copy.deepcopy(dict(model.state_dict()))
    FineTuning(scope="classifier", steps=5).repair(model, clean, trainer)
    assert changed_tensors(before, model) == {"classifier.weight", "classifier.bias"}


def test_classifier_scope_passes_the_images_once(clean: CleanData, toy_victim: Victim, trainer: Trainer) -> None:
    FineTuning(scope="classifier", steps=50).repair(copy.deepcopy(toy_victim.model), clean, trainer)
    assert (trainer.counters.steps, trainer.counters.forward_samples) == (50, 100)
    assert trainer.counters.backward_samples == 0


def test_cached_features_train_the_head_as_the_whole_frozen_model_would(
    clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    cached, frozen = copy.deepcopy(toy_victim.model), copy.deepcopy(toy_victim.model)
    FineTuning(scope="classifier", steps=6, batch_size=20, schedule="constant").repair(cached, clean, trainer)
    trainer.fit(
        frozen,
        clean.train,
        steps=6,
        lr_at=FineTuning(schedule="constant").lr_at(),
        batch_size=20,
        optimizer=Optimizer(),
        trainable=in_scope(frozen, "classifier"),
    )
    torch.testing.assert_close(cached.classifier.weight, frozen.classifier.weight, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        images = to_float(clean.validation.images)
        torch.testing.assert_close(cached(images), frozen(images), atol=1e-4, rtol=1e-4)


def test_last_block_scope_leaves_the_earlier_stages_alone(
    clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    model = copy.deepcopy(toy_victim.model)
    before = copy.deepcopy(dict(model.state_dict()))
    FineTuning(scope="last_block+classifier", steps=5).repair(model, clean, trainer)
    changed = changed_tensors(before, model)
    assert changed
    assert {name.split(".")[0] for name in changed} == {"stages", "classifier"}
    assert {name.split(".")[1:3] == ["4", "1"] for name in changed if name.startswith("stages")} == {True}


def test_wider_scopes_hold_more_parameters(toy_victim: Victim) -> None:
    sizes = {scope: sum(p.numel() for p in in_scope(toy_victim.model, scope)) for scope in SCOPES}
    assert sizes["classifier"] < sizes["last_block+classifier"] < sizes["all"]
    assert sizes["bn_only"] < sizes["all"]
    assert sizes["all"] == sum(p.numel() for p in toy_victim.model.parameters())


def test_bn_only_needs_batch_normalisation() -> None:
    from trainables.models.build import build_model

    with pytest.raises(ValueError, match="bn_only needs a model with batch normalisation"):
        in_scope(build_model("convnext_tiny", num_classes=2), "bn_only")


def test_bn_statistics_moves_no_weight_and_renews_every_statistic(
    clean: CleanData, toy_victim: Victim, trainer: Trainer
) -> None:
    model = copy.deepcopy(toy_victim.model)
    before = copy.deepcopy(model.state_dict())
    defense = FineTuning(scope="bn_statistics")
    repair = defense.repair(model, clean, trainer)
    weights = {name for name, _ in model.named_parameters()}
    after = repair.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in weights)
    renewed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name for name in after if name.endswith(("running_mean", "running_var"))} <= renewed
    work = defense.plan(len(clean.train))
    assert trainer.counters.forward_samples == work.forward_samples == len(clean.train)
    assert trainer.counters.backward_samples == work.backward_samples == 0


def test_cosine_ends_near_zero_and_constant_does_not(clean: CleanData, toy_victim: Victim, trainer: Trainer) -> None:
    cosine, constant = (
        defense.repair(copy.deepcopy(toy_victim.model), clean, trainer).history.lr
        for defense in (FineTuning(steps=40, batch_size=8), FineTuning(steps=40, batch_size=8, schedule="constant"))
    )
    assert cosine[0] == 0.01
    assert cosine[-1] < 1e-4
    assert set(constant) == {0.01}


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"steps": -1},
        {"batch_size": 0},
        {"schedule": "linear"},
        {"scope": "head"},
        {"optimizer": "rmsprop"},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        FineTuning(**settings)  # type: ignore[arg-type]
