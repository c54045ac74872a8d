"""Claims of neural mask fine-tuning: what moves, how far each layer may go, and what is handed back."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from search_spaces.nft import PAPER, SPACE
from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject, same
from tests.trainables.defenses.batches import shuffled
from trainables.data.images import Dataset, to_float
from trainables.defenses.base import CleanData, Repair
from trainables.defenses.nft import NeuralMaskFineTuning, fold
from trainables.defenses.pruning import MaskedModel
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SHORT: dict[str, Any] = {"iterations": 8, "batch_size": 16, "lr": 5.0, "bn_mode": "eval"}


def repair(toy: Dataset, victim: Classifier, trainer: Trainer, **settings: Any) -> tuple[Classifier, Repair]:
    model = copy.deepcopy(victim)
    data = CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(100, 120)))
    return model, NeuralMaskFineTuning(**{**SHORT, **settings}).repair(model, data, trainer)


def masks(model: Classifier, victim: Classifier) -> list[torch.Tensor]:
    """What each layer's scales were multiplied by."""
    pairs = zip(batch_norms(model).values(), batch_norms(victim).values(), strict=True)
    return [(now.weight / then.weight).detach() for now, then in pairs]


def test_only_scales_change(toy: Dataset, learned: Classifier, trainer: Trainer) -> None:
    model, _ = repair(toy, learned, trainer)
    scales = {f"{name}.weight" for name in batch_norms(model)}
    before = learned.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= scales


def test_on_batch_statistics_the_running_ones_follow_the_clean_images(
    toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, _ = repair(toy, learned, trainer, bn_mode="train")
    changed = [
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, learned.state_dict()[name])
    ]
    assert {name.rsplit(".", 1)[1] for name in changed} == {
        "weight",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_published_bounds_by_layer() -> None:
    lowest = NeuralMaskFineTuning().lowest([1] * 12).tolist()
    assert lowest[0] == pytest.approx(0.485, abs=5e-4)
    assert lowest[4] == pytest.approx(0.066, abs=5e-4)
    assert lowest[11] < 0.002


def test_masks_stay_within_the_bounds_of_their_layer_and_reach_them(
    toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, found = repair(toy, learned, trainer, lr=50.0, iterations=20)
    for layer, mask in enumerate(masks(model, learned), 1):
        assert float(mask.min()) >= 0.8 * math.exp(-0.5 * layer) * (1 - 1e-5)
        assert float(mask.max()) <= 1 + 1e-5
    assert found.notes["at_floor"] > 0


@pytest.mark.parametrize("settings", [{"floor": 1.0, "falloff": 0.0}, {"iterations": 0}])
def test_masks_that_may_not_move_are_the_identity(
    settings: dict[str, Any], toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, _ = repair(toy, learned, trainer, **settings)
    assert same(dict(model.state_dict()), dict(learned.state_dict()))


def test_no_iterations_are_the_identity(toy: Dataset, toy_victim: Victim) -> None:
    assert_identity(Subject("nft", toy_victim, toy), iterations=0)


def test_folded_masks_give_the_same_logits(toy: Dataset, learned: Classifier) -> None:
    masked = MaskedModel(copy.deepcopy(learned), batch_statistics=False).eval()
    with torch.no_grad():
        masked.mask.copy_(torch.rand(len(masked.mask), generator=torch.Generator().manual_seed(0)))
        images = to_float(toy.test.images)
        expected = masked(images)
        model = copy.deepcopy(learned).eval()
        fold(model, masked.mask)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_losses_by_hand(toy: Dataset, learned: Classifier, trainer: Trainer) -> None:
    """Cross-entropy first, all masks being 1; then the masks that moved cost eta over the images per class."""
    steady: dict[str, Any] = {"augment": False, "lr": 1.0, "momentum": 0.0, "decay": 1.0, "iterations": 2}
    (_, free), (_, held), (_, mixed) = (
        repair(toy, learned, trainer, **steady, **settings)
        for settings in ({"mixup": 0.0, "eta": 0.0}, {"mixup": 0.0, "eta": 2.0}, {"mixup": 1.0, "eta": 0.0})
    )
    first = shuffled(toy.train.subset(torch.arange(64)), trainer).subset(torch.arange(16))
    with torch.no_grad():
        expected = float(functional.cross_entropy(copy.deepcopy(learned).eval()(to_float(first.images)), first.labels))
    assert free.history.loss[0] == pytest.approx(expected, rel=1e-4)
    assert held.history.loss[0] == pytest.approx(expected, rel=1e-4)
    assert mixed.history.loss[0] != pytest.approx(expected, rel=1e-3)
    after_one, _ = repair(toy, learned, trainer, **{**steady, "iterations": 1}, mixup=0.0, eta=0.0)
    away = sum(float((1 - mask).abs().sum()) for mask in masks(after_one, learned))
    assert away > 0
    assert held.history.loss[1] - free.history.loss[1] == pytest.approx(2.0 * 10 / 64 * away, rel=1e-2)


def test_a_channel_that_only_disturbs_is_all_but_closed(toy: Dataset, learned: Classifier, trainer: Trainer) -> None:
    """Planted in the last block: it shouts into every feature, whatever the image shows."""
    planted, channel = copy.deepcopy(learned), 3
    block = planted.last_block
    with torch.no_grad():
        block.bn2.weight[channel], block.bn2.bias[channel] = 3.0, 0.0  # type: ignore[union-attr,operator,index]
        shape = block.conv2.weight[:, channel].shape  # type: ignore[union-attr,index]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        block.conv2.weight[:, channel] = noise  # type: ignore[union-attr,operator]
    model, _ = repair(toy, planted, trainer, iterations=60, mixup=0.0, lr=0.1, momentum=0.5)
    names = list(batch_norms(planted))
    layer = next(number for number, name in enumerate(names, 1) if batch_norms(planted)[name] is block.bn2)
    mask = masks(model, planted)[layer - 1]
    assert float(mask.median()) > 0.5
    assert float(mask[channel]) < 0.05


def test_a_stiffer_pull_keeps_masks_nearer_to_one(toy: Dataset, learned: Classifier, trainer: Trainer) -> None:
    loose, stiff = (repair(toy, learned, trainer, eta=eta, iterations=30)[1] for eta in (0.0, 1.0))
    assert stiff.notes["mask_mean"] > loose.notes["mask_mean"]


def test_rate_falls_to_the_published_share() -> None:
    defense = NeuralMaskFineTuning()
    assert defense.lr_at(0) == pytest.approx(0.05)
    assert defense.lr_at(1000) == pytest.approx(0.02)
    assert defense.lr_at(800) == pytest.approx(0.0229, abs=1e-4)  # the last of the published five stages


def test_published_point_is_the_default_and_lies_in_the_space() -> None:
    default = NeuralMaskFineTuning()
    assert {key: getattr(default, key) for key in PAPER} == PAPER
    assert all(item._contains(item.to_internal_repr(PAPER[key])) for key, item in SPACE.items())
