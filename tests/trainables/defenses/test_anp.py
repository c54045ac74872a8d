"""Claims of the adversarial neuron pruning defense."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from superft.testing import toy as shipped
from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject, same
from tests.trainables.defenses.batches import shuffled
from tests.trainables.defenses.pruned import assert_only_pruned_gammas_changed
from trainables.data.images import Dataset, to_float
from trainables.defenses.anp import AdversarialNeuronPruning
from trainables.defenses.base import CleanData, Repair
from trainables.defenses.pruning import MaskedModel
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SMALL = shipped.SMALL["anp"]


@pytest.fixture
def masked(learned: Classifier) -> MaskedModel:
    return MaskedModel(copy.deepcopy(learned), batch_statistics=False).eval()


def batch(toy: Dataset, n: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return to_float(toy.train.images[:n]), toy.train.labels[:n]


def noise(masked: MaskedModel, toy: Dataset, **settings: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return AdversarialNeuronPruning(**settings).worst_noise(masked, *batch(toy), generator)


@pytest.mark.parametrize("steps", [1, 4])
def test_noise_reaches_at_most_twice_eps_as_in_public_code(steps: int, masked: MaskedModel, toy: Dataset) -> None:
    found = noise(masked, toy, eps=0.4, steps=steps)
    assert found.shape == (2, sum(norm.num_features for norm in batch_norms(masked.model).values()))
    assert 0.4 < float(found.abs().max()) <= 0.8 + 1e-6


@pytest.mark.parametrize("steps", [1, 4])
def test_clipped_noise_stays_within_eps(steps: int, masked: MaskedModel, toy: Dataset) -> None:
    assert float(noise(masked, toy, eps=0.4, steps=steps, clip_noise=True).abs().max()) <= 0.4 + 1e-6


def test_noise_disturbs_shifts_too_and_starts_anywhere_within_eps(masked: MaskedModel, toy: Dataset) -> None:
    start = noise(masked, toy, eps=0.4, steps=0)
    assert float(start.abs().max()) <= 0.4
    assert float(start[0].min()) < -0.1 < 0.1 < float(start[0].max())
    assert float(start[1].min()) < -0.1 < 0.1 < float(start[1].max())


def test_ascent_makes_the_loss_worse_than_its_random_start(masked: MaskedModel, toy: Dataset) -> None:
    images, labels = batch(toy)
    found = [noise(masked, toy, eps=0.05, steps=steps) for steps in (0, 5)]
    with torch.no_grad():
        losses = [float(functional.cross_entropy(masked(images, each), labels)) for each in found]
    assert losses[1] > losses[0]


def repair(toy: Dataset, victim: Classifier, trainer: Trainer, **settings: Any) -> tuple[Classifier, Repair]:
    model = copy.deepcopy(victim)
    data = CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(100, 200)))
    return model, AdversarialNeuronPruning(**{**SMALL, **settings}).repair(model, data, trainer)


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_pruned_gammas_are_zero_and_everything_else_is_the_victims(
    bn_mode: str, toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, found = repair(toy, learned, trainer, threshold=0.5, acc_tol=None, bn_mode=bn_mode)
    assert_only_pruned_gammas_changed(model, learned, found)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"threshold": 0.0, "lr": 1e-6}])
def test_masks_that_did_not_move_prune_nothing(
    settings: dict[str, Any], toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, found = repair(toy, learned, trainer, **settings)
    assert same(dict(model.state_dict()), dict(learned.state_dict()))
    assert found.status == "abstained"


def test_no_iterations_are_the_identity(toy: Dataset, toy_victim: Victim) -> None:
    assert_identity(Subject("anp", toy_victim, toy), iterations=0)


@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.0])
def test_loss_weighs_the_clean_and_the_disturbed_model_by_alpha(
    alpha: float, toy: Dataset, learned: Classifier, masked: MaskedModel, trainer: Trainer
) -> None:
    settings = {"alpha": alpha, "iterations": 1, "batch_size": 16, "augment": False, "bn_mode": "eval"}
    _, found = repair(toy, learned, trainer, **settings)
    first = shuffled(toy.train.subset(torch.arange(64)), trainer).subset(torch.arange(16))
    images, labels = to_float(first.images), first.labels
    disturbance = AdversarialNeuronPruning().worst_noise(masked, images, labels, trainer.generator("noise"))
    with torch.no_grad():
        clean = float(functional.cross_entropy(masked(images), labels))
        disturbed = float(functional.cross_entropy(masked(images, disturbance), labels))
    assert disturbed > clean
    assert found.history.loss == [pytest.approx(alpha * clean + (1 - alpha) * disturbed, rel=1e-3)]


def test_an_update_is_a_step_down_the_slope_of_the_masks_and_of_nothing_else(
    toy: Dataset, learned: Classifier, masked: MaskedModel, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, fit = list[MaskedModel](), Trainer.fit

    def spy(self: Trainer, model: MaskedModel, *arguments: Any, **settings: Any) -> Any:
        history = fit(self, model, *arguments, **settings)
        seen.append(copy.deepcopy(model))
        return history

    monkeypatch.setattr(Trainer, "fit", spy)
    # With alpha 1 the noise has no part in the loss, nor its signs in the result.
    settings = {"alpha": 1.0, "iterations": 1, "batch_size": 16, "augment": False, "bn_mode": "eval"}
    repair(toy, learned, trainer, **settings)
    first = shuffled(toy.train.subset(torch.arange(64)), trainer).subset(torch.arange(16))
    images, labels = to_float(first.images), first.labels
    (slope,) = torch.autograd.grad(functional.cross_entropy(masked(images), labels), masked.mask)
    wanted = 1.0 - SMALL["lr"] * slope
    assert float(wanted.max()) > 1.0, "else there is nothing to clip"
    torch.testing.assert_close(seen[0].mask.detach(), wanted.clamp(0.0, 1.0), rtol=1e-4, atol=1e-5)
    assert same(dict(seen[0].model.state_dict()), dict(learned.state_dict()))


def test_validation_accuracy_stays_within_the_tolerance(toy: Dataset, learned: Classifier, trainer: Trainer) -> None:
    data = toy.train.subset(torch.arange(100, 200))
    before = trainer.accuracy(copy.deepcopy(learned), data)
    for acc_tol in (0.0, 0.02, 0.3):
        model, found = repair(toy, learned, trainer, acc_tol=acc_tol, tolerance="points")
        assert trainer.accuracy(model, data) >= before - acc_tol - 1e-9
        assert found.notes["validation_after"] == trainer.accuracy(model, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -0.1}, "eps must be >= 0"),
        ({"eps": math.nan}, "eps must be >= 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"alpha": 1.1}, "alpha must be in"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"iterations": -1}, "iterations must be >= 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"threshold": 1.0}, "threshold must be in"),
        ({"acc_tol": -0.1}, "acc_tol must be in"),
        ({"tolerance": "percent"}, "tolerance must be"),
        ({"bn_mode": "frozen"}, "bn_mode must be"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialNeuronPruning(**settings)
