"""Claims of the fine-pruning defense."""

import copy

import pytest
import torch
from torch import Tensor, nn

from superft.testing.defense_subject import Subject
from trainables.data.images import Dataset, ImageSet
from trainables.defenses.base import CleanData
from trainables.defenses.fp import FinePruning
from trainables.models.classifier import Classifier
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


class Grey(nn.Module):
    """Features worked out by hand: unit k of an image is ``factors[k]`` times its mean grey value."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((1, 2, 3))[:, None] * self.factors


def by_hand(factors: list[float], weight: list[list[float]], bias: list[float]) -> Classifier:
    head = nn.Linear(len(factors), len(bias))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.copy_(torch.tensor(bias))
    return Classifier([nn.Identity()], Grey(factors), head, (0.0,) * 3, (1.0,) * 3).eval()


def greys(values: list[float], labels: list[int]) -> ImageSet:
    pixels = (torch.tensor(values) * 255).round().to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    return ImageSet(pixels.clone(), torch.tensor(labels))


@pytest.fixture
def bench(trainer: Trainer) -> Trainer:
    trainer.precision = "float32"
    return trainer


def repaired(model: Classifier, data: ImageSet, bench: Trainer, **settings: object) -> set[int]:
    """Units that fine-pruning without fine-tuning removes."""
    repair = FinePruning(steps=0, **settings).repair(model, CleanData(data, data), bench)  # type: ignore[arg-type]
    return set(map(int, repair.notes["pruned_units"].split()))


def test_strongly_negative_units_are_not_taken_for_silent_ones(bench: Trainer) -> None:
    # Unit 0 decides and is negative throughout; ranking by the signed mean would prune it first, and stop there.
    model = by_hand([-5.0, 0.1, 0.2], [[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [-2.0, 2.0])
    data = greys([0.2, 0.3, 0.6, 0.8], [1, 1, 0, 0])
    assert bench.accuracy(model, data) == 1.0
    assert repaired(model, data, bench, acc_tol=0.1) == {1, 2}
    assert bench.accuracy(model, data) == 1.0


def test_step_that_breaks_the_tolerance_is_taken_back_whole(bench: Trainer) -> None:
    # Units 1 and 2 both matter; the order of pruning is 0, 1, 2 and the second step already costs half the accuracy.
    model = by_hand([0.1, 1.0, 2.0], [[0.0, 4.0, 0.0], [0.0, 0.0, 0.0]], [-2.0, 0.0])
    data = greys([0.2, 0.3, 0.6, 0.8], [1, 1, 0, 0])
    weight = model.classifier.weight.detach().clone()
    assert repaired(model, data, bench, acc_tol=0.1) == {0}
    assert torch.equal(model.classifier.weight[:, 1:], weight[:, 1:])
    assert not model.classifier.weight[:, 0].any()


def test_every_unit_can_go_and_none_is_left_out_at_the_end(bench: Trainer) -> None:
    # A constant guess is right here: all three units are without effect, the last one too.
    model = by_hand([0.1, 1.0, 2.0], [[0.0] * 3, [0.0] * 3], [1.0, 0.0])
    assert repaired(model, greys([0.2, 0.4], [0, 0]), bench, acc_tol=0.0) == {0, 1, 2}


def test_pruning_ends_at_the_first_violation_though_later_steps_would_be_admissible() -> None:
    curve = {0: 0.9, 1: 0.9, 2: 0.5, 3: 0.9, 4: 0.9}
    found = FinePruning(acc_tol=0.1).admissible(torch.arange(4), lambda units: curve[len(units)], 100)
    assert found == (1, 0.9, 0.9)


def test_steps_are_equal_shares_and_the_last_takes_the_rest() -> None:
    asked = list[int]()
    FinePruning(prune_steps=4).admissible(torch.arange(10), lambda units: float(not asked.append(len(units))), 100)
    assert asked == [0, 3, 6, 9, 10]


@pytest.mark.parametrize(("tolerance", "expected"), [("relative", 1), ("points", 2)])
def test_tolerance_is_relative_or_in_points(tolerance: str, expected: int) -> None:
    curve = {0: 0.5, 1: 0.45, 2: 0.41, 3: 0.3}
    defense = FinePruning(acc_tol=0.1, tolerance=tolerance)  # type: ignore[arg-type]
    assert defense.admissible(torch.arange(3), lambda units: curve[len(units)], 100)[0] == expected


def test_order_of_the_images_does_not_change_what_is_pruned(toy: Dataset, learned: Classifier, bench: Trainer) -> None:
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    for layer in ("classifier_in", "last_conv"):
        settings = {"layer": layer, "acc_tol": 0.5}
        data = toy.train.subset(torch.arange(100))
        found = [repaired(copy.deepcopy(learned), images, bench, **settings) for images in (data, data.subset(order))]
        assert found[0] == found[1] != set()


def outputs_of(module: nn.Module, kept: list[Tensor]) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach()))


@pytest.mark.parametrize("steps", [0, 12])
def test_pruned_features_contribute_nothing_before_and_after_tuning(
    steps: int, toy: Dataset, learned: Classifier, bench: Trainer
) -> None:
    model = copy.deepcopy(learned)
    data = CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 200)))
    repair = FinePruning(acc_tol=0.3, steps=steps, batch_size=25, lr=0.1).repair(model, data, bench)
    units = [int(unit) for unit in repair.notes["pruned_units"].split()]
    assert 0 < len(units) == repair.notes["pruned"]
    assert not model.classifier.weight[:, units].any()
    features = bench.features(model, toy.test.images)
    changed = features.clone()
    changed[:, units] += 100.0
    assert torch.equal(model.classifier(features), model.classifier(changed))
    if steps:  # the rest was really tuned
        kept = [unit for unit in range(features.shape[1]) if unit not in units]
        assert not torch.equal(model.classifier.weight[:, kept], learned.classifier.weight[:, kept])


@pytest.mark.parametrize("steps", [0, 12])
def test_pruned_channels_of_the_last_convolution_stay_silent(
    steps: int, toy: Dataset, learned: Classifier, bench: Trainer
) -> None:
    model, kept = copy.deepcopy(learned), list[Tensor]()
    data = CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 200)))
    defense = FinePruning(layer="last_conv", acc_tol=0.5, steps=steps, batch_size=25, lr=0.1)
    units = [int(unit) for unit in defense.repair(model, data, bench).notes["pruned_units"].split()]
    outputs_of(model.get_submodule("stages.4.1.conv2"), kept)
    bench.accuracy(model, toy.test)
    assert units
    assert not kept[0][:, units].any()
    assert kept[0].any() or len(units) == kept[0].shape[1]


def convolutional(
    weights: list[float], bias: list[float], neck: nn.Module, head: nn.Linear, *rest: nn.Module
) -> Classifier:
    """A last convolution worked out by hand: channel k is ``weights[k]`` times the grey value, plus ``bias[k]``."""
    conv = nn.Conv2d(3, len(weights), 1)
    with torch.no_grad():
        conv.weight.copy_((torch.tensor(weights) / 3)[:, None, None, None].expand(-1, 3, 1, 1))
        conv.bias.copy_(torch.tensor(bias))
    block = nn.Sequential(conv, *rest) if rest else conv
    return Classifier([nn.Sequential(block)], nn.Sequential(neck, nn.Flatten()), head, (0.0,) * 3, (1.0,) * 3).eval()


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    return by_hand([0.0] * len(weight[0]), weight, bias).classifier


def test_silence_of_a_channel_is_that_of_its_positions_not_of_their_mean(bench: Trainer) -> None:
    # Channel 0 is negative throughout and channel 1 changes its sign within the image; both decide. 2 is nearly silent.
    head = linear([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]], [0.0, 0.0])
    model = convolutional([-5.0, 10.0, 0.1], [0.0, -5.0, 0.0], nn.AdaptiveMaxPool2d(1), head)
    data = greys([0.2, 0.4], [1, 0])
    data.images[:, :, :, 4:] = 255 - data.images[:, :, :, 4:]
    assert bench.accuracy(model, data) == 1.0
    assert repaired(model, data, bench, acc_tol=0.0, layer="last_conv") == {2}


def test_channel_that_its_activation_never_lets_through_is_silent(bench: Trainer) -> None:
    head = linear([[0.0, 0.0], [0.0, 1.0]], [0.5, 0.0])
    batch_norm = nn.BatchNorm2d(2)
    model = convolutional([1.0, 1.0], [-9.0, 0.0], nn.AdaptiveAvgPool2d(1), head, batch_norm, nn.ReLU())
    data = greys([0.2, 0.8], [0, 1])
    assert repaired(model, data, bench, acc_tol=0.0, layer="last_conv") == {0}


def test_batch_norm_of_a_pruned_channel_adds_nothing_either(bench: Trainer) -> None:
    head, batch_norm = linear([[0.1, 0.2], [0.2, 0.1]], [1.0, 0.0]), nn.BatchNorm2d(2)
    with torch.no_grad():
        batch_norm.bias.fill_(1.0)
    model = convolutional([1.0, 2.0], [0.0, 0.0], nn.AdaptiveAvgPool2d(1), head, batch_norm, nn.ReLU())
    data = greys([0.2, 0.8, 0.3], [0, 0, 1])
    defense = FinePruning(layer="last_conv", acc_tol=0.0, steps=2, lr=0.1)
    assert defense.repair(model, CleanData(data, data), bench).notes["pruned"] == 2
    assert not bench.features(model, data.images).any()


def test_accuracy_is_that_of_float32_logits_whatever_the_precision(bench: Trainer) -> None:
    # The logits 2.500 and 2.501 are one bfloat16 number.
    model, data = by_hand([1.0], [[1.0], [1.0]], [2.0, 2.001]), greys([0.5, 0.5], [1, 1])
    bench.precision = "bfloat16"
    assert bench.accuracy(model, data) == 1.0
    repair = FinePruning(steps=0).repair(model, CleanData(data, data), bench)
    assert (repair.notes["validation_before"], repair.notes["validation_after"]) == (1.0, 1.0)


@pytest.mark.parametrize("layer", ["classifier_in", "last_conv"])
@pytest.mark.parametrize("acc_tol", [0.0, 0.05, 0.3])
def test_tolerance_is_never_exceeded_on_validation_data(
    layer: str, acc_tol: float, toy: Dataset, learned: Classifier, bench: Trainer
) -> None:
    model = copy.deepcopy(learned)
    data = CleanData(toy.train.subset(torch.arange(100)), toy.train.subset(torch.arange(100, 200)))
    before = bench.accuracy(model, data.validation)
    defense = FinePruning(layer=layer, acc_tol=acc_tol, tolerance="points", steps=0)  # type: ignore[arg-type]
    repair = defense.repair(model, data, bench)
    after = bench.accuracy(model, data.validation)
    assert after >= before - acc_tol - 1e-9  # 100 images: each of these tolerances is none or several of them
    assert (repair.notes["validation_before"], repair.notes["validation_after"]) == (before, after)


def test_cost_is_known_beforehand_where_features_are_pruned(toy: Dataset, toy_victim: Victim) -> None:
    subject = Subject("fp", toy_victim, toy)
    run, _ = subject.run()
    assert isinstance(run.assets, CleanData)
    assert run.trainer.counters == subject.defense.plan(len(run.assets.train), len(run.assets.validation))


def test_fine_tuning_follows_a_cosine_over_its_own_length(toy: Dataset, learned: Classifier, bench: Trainer) -> None:
    data = CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 96)))
    model = copy.deepcopy(learned)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    repair = FinePruning(steps=10, batch_size=16, lr=0.02).repair(model, data, bench)
    assert len(repair.history.lr) == 10
    assert repair.history.lr[0] == pytest.approx(0.02)
    assert repair.history.lr[5] == pytest.approx(0.01)
    assert repair.history.lr[-1] < 0.001
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"acc_tol": -0.1}, "acc_tol must be in"),
        ({"acc_tol": 1.0}, "acc_tol must be in"),
        ({"tolerance": "percent"}, "tolerance must be"),
        ({"layer": "first"}, "layer must be"),
        ({"prune_steps": 0}, "prune_steps must be >= 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinePruning(**settings)  # type: ignore[arg-type]
