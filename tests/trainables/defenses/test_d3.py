"""Claims of D3: chosen weights keep their length and go as far from the old ones as the loss on clean images allows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces.d3 import PAPER, SPACE
from trainables.data.images import Dataset
from trainables.defenses.base import CleanData, Repair
from trainables.defenses.d3 import DistanceDrivenDetoxification, begin, distance, linear_weights, rescale
from trainables.models.build import build_model
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 16}
NO_LOSS = 1e6  # a slack that no image reaches: the distance is all that is left


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def repaired(victim: Victim, toy: Dataset, trainer: Trainer, **settings: Any) -> Repair:
    defense = DistanceDrivenDetoxification(**{**SHORT, **settings})
    return defense.repair(copy.deepcopy(victim.model), clean(toy), trainer)


@pytest.mark.parametrize("moved", ["classifier", "last_block+classifier", "all"])
@pytest.mark.parametrize("init", ["random", "noise", "far", "near"])
def test_every_moved_weight_keeps_its_length(
    init: str, moved: str, toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    found = repaired(toy_victim, toy, trainer, init=init, moved=moved, lr=0.1).model
    before = dict(toy_victim.model.named_parameters())
    checked = 0
    for name, now in found.named_parameters():
        if now.ndim > 1 and (moved == "all" or name.startswith("classifier.")):
            assert float(now.detach().norm()) == pytest.approx(float(before[name].detach().norm()), rel=1e-5)
            checked += 1
    assert checked >= (2 if moved == "all" else 1)


def test_the_greatest_distance_is_twice_the_length_and_far_begins_there() -> None:
    original = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for init in ("random", "noise", "far", "near"):
        weight = original.clone()
        begin([weight], init, torch.Generator().manual_seed(1))
        rescale([weight], [original])
        share = float(distance([weight], [original]) / (2 * original.norm()))
        assert share <= 1 + 1e-6
        assert (share == pytest.approx(1.0, rel=1e-6)) == (init == "far")
        assert (share < 1e-4) == (init == "near")


def test_the_distance_has_a_gradient_even_where_it_is_zero() -> None:
    original = torch.ones(3, 3)
    weight = original.clone().requires_grad_()
    distance([weight], [original]).backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())


def test_where_the_loss_is_good_enough_the_head_turns_to_its_opposite(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    found = repaired(toy_victim, toy, trainer, slack=NO_LOSS, lr=0.3, steps=60, schedule="constant")
    assert found.notes["head_cosine"] < -0.99
    assert found.notes["distance"] > 0.99


def test_loss_holds_the_head_back(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    weak, strong = (repaired(toy_victim, toy, trainer, loss_weight=weight, steps=40, lr=0.1) for weight in (0.01, 50.0))
    assert weak.notes["distance"] > strong.notes["distance"]


@pytest.mark.parametrize("hinge", ["sample", "batch"])
def test_first_step_is_that_of_its_formula(hinge: str, toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    """Loss and distance by hand on one batch of all images, for the head's bias, which the distance does not move."""
    slack, lr, model = 0.05, 0.1, copy.deepcopy(toy_victim.model)
    one_batch = CleanData(toy.train.subset(torch.arange(2)), toy.train.subset(torch.arange(64, 80)))
    common: dict[str, Any] = {"init": "near", "slack": slack, "hinge": hinge, "loss_weight": 2.0, "bn_mode": "eval"}
    defense = DistanceDrivenDetoxification(
        steps=1, lr=lr, momentum=0.0, schedule="constant", augment=False, batch_size=2, **common
    )
    found = defense.repair(copy.deepcopy(model), one_batch, trainer).model
    model.eval()
    each = torch.nn.functional.cross_entropy(
        model(one_batch.train.images.float() / 255), one_batch.train.labels, reduction="none"
    )
    value: Tensor = 2.0 * ((each - slack).relu().mean() if hinge == "sample" else (each.mean() - slack).relu())
    (gradient,) = torch.autograd.grad(value, [model.classifier.bias])
    expected = model.classifier.bias.detach() - lr * gradient
    torch.testing.assert_close(found.classifier.bias.detach(), expected, rtol=1e-3, atol=1e-6)


def test_biases_do_not_count_and_all_parameters_train(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = repaired(toy_victim, toy, trainer).model
    before = dict(toy_victim.model.named_parameters())
    assert not any(torch.equal(parameter, before[name]) for name, parameter in found.named_parameters())


def test_only_weights_of_linear_and_convolution_layers_move_away() -> None:
    """ConvNeXt scales each channel of a block by a parameter of three dimensions."""
    model = build_model("convnext_tiny", num_classes=10)
    far = {name for name, one in model.named_parameters() if id(one) in linear_weights(model)}
    assert not [name for name in far if "layer_scale" in name or not name.endswith("weight")]
    several = {name for name, one in model.named_parameters() if one.ndim > 1 and "layer_scale" not in name}
    assert far == several


def test_without_steps_not_even_the_head_is_touched(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    found = repaired(toy_victim, toy, trainer, steps=0).model
    assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in toy_victim.model.state_dict().items())
    assert trainer.counters == Counters()


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = DistanceDrivenDetoxification()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
    assert SPACE["loss_weight"]._contains(10.0)
