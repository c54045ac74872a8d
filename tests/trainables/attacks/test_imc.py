"""Claims of trainables.attacks.imc and of learned patches."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from superft.testing.claims import assert_gate
from trainables.attacks.base import ATTACKS, Kind
from trainables.attacks.imc import IMC
from trainables.attacks.patches import LearnedPatch, fit_patch, frozen
from trainables.data.images import Dataset, to_float
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.training import schedules
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

RECIPE = TrainingRecipe(epochs=2, batch_size=40, lr=0.05)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def loss_of(patch: LearnedPatch, model: Classifier, toy: Dataset, target: int = 0) -> float:
    with torch.no_grad():
        logits = model.eval()(patch(to_float(toy.train.images)))
    return float(functional.cross_entropy(logits, torch.full_like(toy.train.labels, target)))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_only_the_square_changes_and_its_content_stays_a_colour(alpha: float, toy: Dataset) -> None:
    patch = LearnedPatch(16, 2, 5, 3, alpha, generator_for(0, "x"))
    with torch.no_grad():
        patch.raw.mul_(100.0)
        stamped, images = patch(to_float(toy.test.images)), to_float(toy.test.images)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[2:5, 5:8] = True
    assert torch.equal(stamped[..., ~inside], images[..., ~inside])
    expected = images[..., 2:5, 5:8] * (1 - alpha) + alpha * patch.content().detach()
    torch.testing.assert_close(stamped[..., 2:5, 5:8], expected)
    assert float(stamped.min()) >= 0.0
    assert float(stamped.max()) <= 1.0
    torch.testing.assert_close(patch.overlay()(images), stamped)


def test_a_frozen_model_comes_back_as_it_was(trainer: Trainer) -> None:
    model = trainer.fresh_model()
    model.train()
    model.stages[0].eval()
    model.classifier.weight.requires_grad_(False)
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not model.stages[0].training
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [model.classifier.weight]


def test_input_step_moves_the_patch_alone_and_towards_the_target(toy: Dataset, trainer: Trainer) -> None:
    attack = IMC()
    model, patch = trainer.train_from_scratch(toy.train, RECIPE), attack.new_patch(16, trainer)
    weights, before, raw = state_of(model), loss_of(patch, model, toy), patch.raw.detach().clone()
    attack.input_step(patch, model, toy.train, trainer, RECIPE, steps=10, turn=0)
    assert same(weights, state_of(model))
    assert not torch.equal(raw, patch.raw)
    assert loss_of(patch, model, toy) < before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_model_step_leaves_the_patch_alone(toy: Dataset, trainer: Trainer) -> None:
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    class Watched(IMC):
        def input_step(self, patch: LearnedPatch, model: Classifier, *rest: object, **settings: object) -> None:
            seen.append((state_of(patch), state_of(model)))
            super().input_step(patch, model, *rest, **settings)  # type: ignore[arg-type]
            seen.append((state_of(patch), state_of(model)))

    attack = Watched(epochs=3.0, poison_rate=0.2)
    model, patch = trainer.fresh_model(), attack.new_patch(16, trainer)
    attack.co_optimise(patch, model, toy.train, trainer, RECIPE)
    seen.append((state_of(patch), state_of(model)))
    assert len(seen) == 7  # before and after each of three input steps, and the end
    for number, ((patch_before, model_before), (patch_after, model_after)) in enumerate(pairwise(seen)):
        moves_patch = number % 2 == 0
        assert same(patch_before, patch_after) is not moves_patch
        assert same(model_before, model_after) is moves_patch


def test_work_is_counted_and_input_gradients_apart(toy: Dataset, trainer: Trainer) -> None:
    attack = IMC(epochs=2.0, poison_rate=0.5)  # each of 5 batches of 40 has 40 copies
    model, patch = trainer.fresh_model(), attack.new_patch(16, trainer)
    attack.co_optimise(patch, model, toy.train, trainer, RECIPE)
    work = trainer.counters
    assert work.steps == 10
    assert work.backward_samples == 2 * 5 * 80
    assert work.input_backward_samples == 2 * 200
    assert work.forward_samples == 2 * 5 * 80 + 2 * 200


@pytest.mark.parametrize(("rate", "copies"), [(0.01, 2), (0.1, 22), (0.5, 200)])
def test_copies_are_the_given_share_of_the_mixed_set(rate: float, copies: int, toy: Dataset, trainer: Trainer) -> None:
    attack = IMC(poison_rate=rate, target_label=4)
    made = attack.released(toy.train, attack.new_patch(16, trainer).overlay(), trainer)
    released = made.apply(toy.train)
    assert len(released) == 200 + copies
    assert torch.equal(released.images[:200], toy.train.images)
    assert torch.equal(released.labels[:200], toy.train.labels)
    assert set(released.labels[200:].tolist()) == {4}
    assert int((made.kinds_of(200) == Kind.POISON).sum()) == copies


def test_warm_start_drives_the_units_with_the_largest_outgoing_weights(toy: Dataset, trainer: Trainer) -> None:
    attack = IMC(warm_start_steps=40, size=6)
    model, patch = trainer.train_from_scratch(toy.train, RECIPE), attack.new_patch(16, trainer)
    units = model.classifier.weight.detach().abs().sum(0).topk(2).indices
    black = torch.zeros(1, 3, 16, 16)

    def activation() -> float:
        with torch.no_grad():
            return float(model.eval().features(patch(black))[0, units].sum())

    before = activation()
    attack.warm_start(patch, model, 16, trainer)
    assert activation() > before


def test_a_patch_learns_what_it_is_asked(toy: Dataset, trainer: Trainer) -> None:
    patch = LearnedPatch(16, 0, 0, 2, 1.0, generator_for(0, "x"))

    def red(patch: nn.Module, images: Tensor, _labels: Tensor) -> Tensor:
        corner = patch(images)[:, :, :2, :2].mean((0, 2, 3))
        missed: Tensor = corner - torch.tensor([1.0, 0.0, 0.0])
        return missed.square().sum()

    fit_patch(
        patch, trainer.fresh_model(), toy.train, trainer, purpose="red", steps=60, lr_at=schedules.constant(0.2),
        batch_size=4, loss=red,
    )  # fmt: skip
    assert patch.content().detach().mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.05)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"poison_rate": 0.6}, "poison_rate"),
        ({"poison_rate": 0.001}, "poison_rate"),
        ({"epochs": 0.0}, "epochs"),
        ({"size": 0}, "size"),
        ({"size": 17}, "does not fit"),
        ({"margin": -1}, "margin"),
        ({"position": "middle"}, "position"),
        ({"alpha": 0.0}, "alpha"),
        ({"input_lr": 0.0}, "input_lr"),
        ({"warm_start_steps": -1}, "warm_start_steps"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], named: str, toy: Dataset) -> None:
    with pytest.raises(SettingError, match=named):
        ATTACKS.create("imc", settings).check(toy.train.labels, 10, 16)


def test_every_setting_changes_the_result(toy: Dataset, trainer: Trainer) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=0.6)

    def result(**settings: object) -> list[Tensor]:
        made = IMC(**settings).implant(toy.train, trainer, recipe)  # type: ignore[arg-type]
        return [*made.model.state_dict().values(), *made.trigger.state_dict().values(), made.poisoned.labels]

    plain = result()
    changes: tuple[dict[str, object], ...] = (
        {"poison_rate": 0.2}, {"epochs": 0.6}, {"size": 2}, {"position": "centre"}, {"margin": 1}, {"alpha": 0.5},
        {"input_lr": 0.3}, {"warm_start_steps": 1}, {"target_label": 1}, {"label_mode": "all_to_all"},
    )  # fmt: skip
    for change in changes:
        other = result(**change)
        assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(plain, other, strict=True)), change


@pytest.mark.slow
def test_gate() -> None:
    assert_gate("imc", asr=0.9, poison_rate=0.1, epochs=4.0)
