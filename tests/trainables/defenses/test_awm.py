"""Claims of AWM: single weights are masked, within [0, 1], against a perturbation within its bound."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainables.defenses.batches import shuffled
from trainables.data.images import Dataset, to_float
from trainables.defenses.awm import AdversarialWeightMasking, MaskedConvolutions
from trainables.defenses.base import CleanData
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"steps": 4, "round_steps": 2, "inner_steps": 2, "batch_size": 16, "lr": 0.1}


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


@pytest.fixture
def repaired(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> Classifier:
    defense = AdversarialWeightMasking(**SHORT)
    return defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model


def test_every_weight_of_a_convolution_is_shortened_and_nothing_else_is_changed(
    repaired: Classifier, toy_victim: Victim
) -> None:
    names = MaskedConvolutions(toy_victim.model).names
    before = toy_victim.model.state_dict()
    for name, after in repaired.state_dict().items():
        if name in names:
            assert torch.all(after * before[name] >= 0), "a mask is not negative"
            assert torch.all(after.abs() <= before[name].abs()), "nor above 1"
            assert not torch.equal(after, before[name])
        else:
            assert torch.equal(after, before[name]), name


def test_weights_of_one_channel_get_masks_of_their_own(repaired: Classifier, toy_victim: Victim) -> None:
    name = MaskedConvolutions(toy_victim.model).names[-1]
    masks = repaired.get_parameter(name) / toy_victim.model.get_parameter(name)
    assert float(masks.detach().flatten(1).std(1).min()) > 0


def test_with_masks_of_one_it_is_the_model(toy: Dataset, toy_victim: Victim) -> None:
    images = to_float(toy.test.images[:8])
    assert torch.equal(MaskedConvolutions(toy_victim.model)(images), toy_victim.model(images))


@pytest.mark.parametrize("bound", [0.02, 0.2])
def test_the_perturbation_fools_within_its_bound(
    bound: float, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    defense = AdversarialWeightMasking(bound=bound, inner_lr=100.0, inner_steps=4, batch_size=16)
    data, masked = clean(toy).train, MaskedConvolutions(toy_victim.model)
    delta = defense.find_perturbation(masked, data, trainer, round_=0)
    assert delta.shape == (1, *data.images.shape[1:])
    assert float(delta.abs().mean()) <= bound * (1 + 1e-5)

    def loss(images: Tensor) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(masked(images), data.labels))

    images = to_float(data.images)
    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    noise *= delta.abs().mean() / noise.abs().mean()
    assert loss(images + delta) > loss(images + noise), "worse than noise of its size"


def test_the_perturbation_is_that_of_the_masked_model(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    masked, defense, found = MaskedConvolutions(toy_victim.model), AdversarialWeightMasking(), list[Tensor]()
    for mask in (1.0, 0.5):
        with torch.no_grad():
            for each in masked.masks:
                each.fill_(mask)
        found.append(defense.find_perturbation(masked, clean(toy).train, trainer, round_=0))
    assert not torch.allclose(found[0], found[1])


def test_loss_weighs_clean_and_attacked_images_by_alpha_and_adds_the_penalty(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    settings: dict[str, Any] = {"alpha": 0.8, "gamma": 1e-3, "inner_lr": 200.0, "batch_size": 16, "augment": False}
    defense, data = AdversarialWeightMasking(steps=1, inner_steps=4, lr=0.1, **settings), clean(toy)
    model, masked = copy.deepcopy(toy_victim.model), MaskedConvolutions(toy_victim.model)
    delta = defense.find_perturbation(masked, data.train, trainer, round_=0)
    batch = shuffled(data.train, trainer).subset(torch.arange(16))
    images = to_float(batch.images)
    with torch.no_grad():
        clean_, attacked = (float(functional.cross_entropy(masked(x), batch.labels)) for x in (images, images + delta))
    assert attacked > clean_ + 0.01
    found = defense.repair(model, data, trainer)
    wanted = 0.8 * clean_ + 0.2 * attacked + 1e-3 * sum(mask.numel() for mask in masked.masks)
    assert found.history.loss == [pytest.approx(wanted, rel=1e-4)]
    # Adam's first step is as long for every mask.
    name = masked.names[-1]
    masks = (model.get_parameter(name) / toy_victim.model.get_parameter(name)).detach()
    assert float(masks.min()) == pytest.approx(0.9, rel=1e-3)


def test_a_large_penalty_removes_weights(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    means = []
    for gamma in (0.0, 1e-2):
        defense = AdversarialWeightMasking(**SHORT, gamma=gamma)
        means.append(defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).notes["mask_mean"])
    assert means[1] < means[0] < 1


def test_no_steps_hand_back_the_model(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    model = copy.deepcopy(toy_victim.model)
    repair = AdversarialWeightMasking(steps=0).repair(model, clean(toy), trainer)
    assert all(
        torch.equal(value, toy_victim.model.state_dict()[key]) for key, value in repair.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0"),
        ({"bound": 0.0}, "bound must be > 0"),
        ({"inner_lr": -1.0}, "inner_lr must be > 0"),
        ({"alpha": 1.1}, "alpha must be in"),
        ({"gamma": -1e-9}, "gamma must be >= 0"),
        ({"round_steps": 0}, "round_steps must be >= 1"),
        ({"inner_steps": 0}, "inner_steps must be >= 1"),
        ({"steps": -1}, "steps must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialWeightMasking(**settings)
