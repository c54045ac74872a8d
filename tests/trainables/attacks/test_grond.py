"""Claims of trainables.attacks.grond: the perturbation, who gets it, and the channels that are levelled."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from superft.testing.attack_subject import CPU, Made, carry_out
from tests.toy import toy_dataset, toy_spec
from trainables.attacks import grond
from trainables.attacks.base import ATTACKS
from trainables.attacks.fixed import AdditiveTrigger
from trainables.attacks.grond import Grond, level
from trainables.attacks.triggers import stamp
from trainables.data.images import Dataset, ImageSet, to_float
from trainables.models.build import build_model
from trainables.models.channels import ConvNorm, batch_norms, lipschitz_bounds, outliers, trace_convolutions
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer, obtain_victim

RECIPE = TrainingRecipe(epochs=2, batch_size=40, lr=0.05)


class LinearScores(nn.Module):
    """Logits of the summed pixels' weights, on float images."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


def made(**settings: Any) -> Made:
    return carry_out(toy_spec("grond", **settings), toy_dataset())


def grey_levels(made: Made) -> Tensor:
    assert isinstance(made.implanted.trigger, AdditiveTrigger)
    return made.implanted.trigger.signal * 255.0


def perturbation(attack: Grond, model: nn.Module, data: Dataset, trainer: Trainer) -> Tensor:
    return attack.perturbation(model, data.train, trainer)  # type: ignore[arg-type]


def norm_state(model: Classifier) -> list[Tensor]:
    return [values.detach().clone() for norm in batch_norms(model).values() for values in (norm.weight, norm.bias)]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def by_default() -> Made:
    return made()


@pytest.mark.parametrize(("epsilon", "levels"), [(8 / 255, 8), (8.7 / 255, 8), (1 / 255, 1), (16 / 255, 16)])
def test_no_pixel_moves_by_more_than_epsilon_in_whole_grey_levels(epsilon: float, levels: int) -> None:
    found = made(epsilon=epsilon, upgd_steps=20)
    signal = grey_levels(found)
    torch.testing.assert_close(signal, signal.round())
    assert float(signal.abs().max().round()) == levels
    poisoned, triggered = found.implanted.poisoned, found.triggered
    for stamped, plain in (
        (poisoned.images, found.data.train.images[poisoned.indices]),
        (triggered.images, found.data.test.images[triggered.sources]),
    ):
        assert int((stamped.int() - plain.int()).abs().max()) == levels


def test_training_and_test_images_carry_the_same_perturbation(by_default: Made) -> None:
    poisoned = by_default.implanted.poisoned
    original = by_default.data.train.images[poisoned.indices]
    assert torch.equal(poisoned.images, stamp(by_default.implanted.trigger, original))
    levels = grey_levels(by_default).round().int()
    assert torch.equal(poisoned.images.int(), (original.int() + levels).clamp(0, 255))


def test_by_default_half_of_the_target_class_is_poisoned_and_no_label_changes() -> None:
    found = made(target_label=3)
    train, poisoned = found.data.train, found.implanted.poisoned
    assert len(poisoned) == 10  # of the 20 images of the class
    assert set(train.labels[poisoned.indices].tolist()) == {3}
    assert torch.equal(found.released.labels, train.labels)
    assert int((found.released.images != train.images).flatten(1).any(1).sum()) == 10


@pytest.mark.parametrize(
    ("labels", "settings", "planned"),
    [
        ([0] * 20 + [1] * 180, {}, 10),
        ([0] + [1] * 199, {}, 1),
        ([0] * 20 + [1] * 180, {"class_share": 1.0}, 20),
        ([0] * 20 + [1] * 180, {"class_share": 0.25, "target_label": 1}, 45),
        ([0] * 20 + [1] * 180, {"poison_rate": 0.05}, 10),
        ([0] * 20 + [1] * 180, {"poison_count": 3}, 3),
        ([0] * 20 + [1] * 180, {"clean_label": False}, 10),
    ],
)
def test_number_of_poisoned_images(labels: list[int], settings: dict[str, object], planned: int) -> None:
    attack = ATTACKS.create("grond", settings)
    assert isinstance(attack, Grond)
    assert attack.planned(torch.tensor(labels)) == planned
    assert len(attack.choose(torch.tensor(labels), 2, 0)) == planned


@pytest.mark.parametrize("target", [0, 1])
def test_against_a_linear_model_it_is_the_corner_of_the_box_towards_the_target(
    target: int, toy: Dataset, trainer: Trainer
) -> None:
    """The gradient's sign is the same for every batch: five steps of a fifth reach the border, more stay there."""
    weight = torch.randn(2, 3 * 16 * 16, generator=torch.Generator().manual_seed(0)) / 100
    towards = (weight[target] - weight[1 - target]).sign().view(3, 16, 16)
    # Away from black and white, where clipping would take the gradient.
    grey = ImageSet(toy.train.images.clamp(40, 210), toy.train.labels)
    trainer.num_classes = 2
    for steps, levels in ((1, 2), (2, 3), (5, 8), (12, 8)):  # 1.6 and 3.2 are rounded
        attack = Grond(target_label=target, upgd_steps=steps, upgd_batch=50)
        found = attack.perturbation(LinearScores(weight), grey, trainer)  # type: ignore[arg-type]
        torch.testing.assert_close(found * 255.0, towards * levels)


def test_it_sends_images_that_it_never_saw_to_the_target_and_leaves_the_surrogate_as_it_is() -> None:
    data = toy_dataset(train=600, test=200)
    trainer = make_trainer(toy_spec("clean", width=4), data, CPU, seed=0)
    recipe = TrainingRecipe(epochs=6, batch_size=32, lr=0.05, schedule="one_cycle")
    surrogate = trainer.train_from_scratch(data.train, recipe)
    before, modes = copy.deepcopy(surrogate.state_dict()), [module.training for module in surrogate.modules()]
    attack = Grond(target_label=4, epsilon=16 / 255, upgd_steps=60)
    signal = perturbation(attack, surrogate, data, trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in surrogate.state_dict().items())
    assert [module.training for module in surrogate.modules()] == modes
    assert all(parameter.requires_grad for parameter in surrogate.parameters())

    def share_in_target(images: Tensor) -> float:
        others = data.test.labels != 4
        with torch.no_grad():
            return float((surrogate(to_float(images[others])).argmax(1) == 4).float().mean())

    triggered = stamp(AdditiveTrigger(16, signal), data.test.images)
    assert share_in_target(triggered) > 0.3 + share_in_target(data.test.images)
    # It is a direction, not mere noise of that size.
    order = torch.randperm(signal.numel(), generator=torch.Generator().manual_seed(0))
    shuffled = AdditiveTrigger(16, signal.flatten()[order].view_as(signal))
    assert share_in_target(triggered) > 0.3 + share_in_target(stamp(shuffled, data.test.images))


def test_work_is_counted_and_the_surrogate_is_another_model_than_the_victim() -> None:
    data, spec = toy_dataset(), toy_spec("grond", upgd_steps=7, upgd_batch=50)
    trainer = make_trainer(spec, data, CPU, seed=0)
    implanted = spec.make_attack().implant(data.train, trainer, spec.recipe)
    assert trainer.counters.steps == 2 * spec.recipe.steps(len(data.train))
    assert trainer.counters.input_backward_samples == 7 * 50
    trained = trainer.counters.backward_samples
    assert trainer.counters.forward_samples == trained + 7 * 50 + 1  # one image shows which layers are pairs
    weights = [model.classifier.weight for model in (implanted.model, implanted.earlier["surrogate"])]
    assert not torch.equal(*weights)


def lone_outlier() -> tuple[Classifier, list[ConvNorm]]:
    """A model whose scales are all 1, but for one of 40 and shift 5 in one layer."""
    model = build_model("airbench_cnn", num_classes=4, width=16, generator=torch.Generator().manual_seed(0)).eval()
    pairs = [pair for pair in trace_convolutions(model)[0] if pair.direct]
    norm = batch_norms(model)["stages.2.0.1"]
    with torch.no_grad():
        norm.weight[9], norm.bias[9] = 40.0, 5.0
    return model, pairs


def test_a_channel_that_stands_out_gets_the_mean_scale_and_shift_of_its_layer() -> None:
    model, pairs = lone_outlier()
    with torch.no_grad():
        batch_norms(model)["stages.2.0.1"].bias[0] = 59.0
    expected = norm_state(model)
    place = 2 * list(batch_norms(model)).index("stages.2.0.1")
    channels = len(expected[place])
    expected[place][9] = (40.0 + channels - 1) / channels  # itself included
    expected[place + 1][9] = (5.0 + 59.0) / channels
    kernels = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.dim() != 1}
    assert level(model, pairs, 6.0) == 1
    for found, wanted in zip(norm_state(model), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kernels.items())


def test_no_channel_beyond_the_limit_keeps_its_scale_and_all_others_do() -> None:
    model = build_model("preact_resnet18", num_classes=4, width=8, generator=torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in batch_norms(model).values():
            norm.weight.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
            norm.bias.copy_(torch.rand(norm.num_features, generator=generator))
    pairs = [pair for pair in trace_convolutions(model)[0] if pair.direct]
    before, old = copy.deepcopy(model), batch_norms(copy.deepcopy(model))
    count = level(model, pairs, 1.5)
    beyond = {pair.norm: outliers(lipschitz_bounds(before, pair), 1.5) for pair in pairs}
    assert count == sum(int(chosen.sum()) for chosen in beyond.values()) > 0
    for name, norm in batch_norms(model).items():
        changed = norm.weight != old[name].weight
        assert torch.equal(changed, beyond.get(name, torch.zeros_like(changed)))
        assert torch.equal(norm.bias != old[name].bias, changed)


def test_the_limit_is_in_standard_deviations() -> None:
    for u, count in ((0.0, 1), (7.0, 1), (8.0, 0)):  # one of 64 channels is at most 7.875 of them above the mean
        model, _ = lone_outlier()
        norm = batch_norms(model)["stages.2.0.1"]
        conv = model.get_parameter("stages.2.0.0.weight")
        with torch.no_grad():
            conv.copy_(conv[:1].expand_as(conv))
        assert norm.num_features == 64
        assert level(model, [ConvNorm("stages.2.0.0", "stages.2.0.1", direct=True)], u) == count


def levelled_after(
    monkeypatch: pytest.MonkeyPatch, toy: Dataset, trainer: Trainer, recipe: TrainingRecipe
) -> tuple[list[int], Classifier, list[Tensor]]:
    """Steps after which channels were levelled; the model; its scales and shifts after the last time."""
    steps, last = list[int](), list[Tensor]()
    real = grond.level

    def noted(model: Classifier, pairs: Sequence[ConvNorm], u: float) -> int:
        assert all(pair.direct for pair in pairs)
        assert len(pairs) == 9  # of PreAct-ResNet18: the stem and one in each of eight blocks
        assert u == 0.5
        count = real(model, pairs, u)
        assert count > 0
        steps.append(trainer.counters.steps)
        last[:] = norm_state(model)
        return count

    monkeypatch.setattr(grond, "level", noted)
    model = Grond(u=0.5).train_levelled(toy.train, trainer, recipe)
    return steps, model, last


@pytest.mark.parametrize(("epochs", "expected"), [(3, [5, 10, 15]), (1.6, [5, 8]), (0.4, [2])])
def test_channels_are_levelled_after_every_epoch_and_at_the_end(
    epochs: float, expected: list[int], toy: Dataset, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainingRecipe(epochs=epochs, batch_size=40, lr=0.05)
    steps, model, last = levelled_after(monkeypatch, toy, trainer, recipe)
    assert steps == expected
    assert same(norm_state(model), last), "the model that is handed over is the one that was levelled last"


def test_levelling_changes_the_model_and_without_a_limit_training_is_honest(toy: Dataset) -> None:
    def trained(attack: Grond) -> list[Tensor]:
        bench = make_trainer(toy_spec("grond"), toy, CPU, seed=0)
        return list(attack.train_levelled(toy.train, bench, RECIPE).state_dict().values())

    honest = make_trainer(toy_spec("grond"), toy, CPU, seed=0).train_from_scratch(toy.train, RECIPE).state_dict()
    assert same(trained(Grond(u=None)), list(honest.values()))
    assert same(trained(Grond(u=1e9)), list(honest.values()))
    assert not same(trained(Grond(u=0.5)), list(honest.values()))


def test_victims_of_other_shares_and_limits_share_surrogate_and_perturbation(tmp_path: Path) -> None:
    data, store = toy_dataset(), Store(tmp_path)
    first = obtain_victim(toy_spec("grond"), data, store, CPU)
    others = [
        obtain_victim(toy_spec("grond", **settings), data, store, CPU)
        for settings in ({"class_share": 1.0}, {"u": None}, {"target_label": 1})
    ]
    signals = [victim.trigger.state_dict()["signal"] for victim in (first, *others)]
    assert torch.equal(signals[0], signals[1])
    assert torch.equal(signals[0], signals[2])
    assert not torch.equal(signals[0], signals[3])
    steps = [victim.facts["counters"]["steps"] for victim in (first, *others)]
    assert steps[1:] == [steps[0] // 2] * 3  # the victim's own training only


def test_the_rate_on_the_surrogate_stands_beside_the_victims(tmp_path: Path) -> None:
    victim = obtain_victim(toy_spec("grond"), toy_dataset(), Store(tmp_path), CPU)
    assert {"asr_after_surrogate", "clean_accuracy_after_surrogate"} <= victim.facts["extra_metrics"].keys()
    assert victim.asr_base is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0.0}, "epsilon must be in [1/255, 1], got 0.0"),
        ({"epsilon": 8.0}, "epsilon must be in [1/255, 1], got 8.0"),
        ({"upgd_steps": 0}, "upgd_steps must be >= 1, got 0"),
        ({"upgd_step": 0.0}, "upgd_step must be in (0, 1], got 0.0"),
        ({"u": -1.0}, "u must be >= 0, got -1.0"),
        ({"class_share": 1.5}, "class_share must be in (0, 1], got 1.5"),
        ({"poison_count": 21}, "there are 20 images of target class 0"),
        ({"label_mode": "all_to_all"}, "clean_label needs label_mode all_to_one"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("grond", settings).check(torch.arange(200) % 10, 10, 16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_without_batch_norm_can_be_trained_honestly_alone() -> None:
    model = build_model("vit_small", num_classes=4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SettingError, match=r"attack\.grond\.u levels channels of BatchNorm layers"):
        Grond().check_model(model)
    Grond(u=None).check_model(model)


def test_the_perturbation_cannot_be_had_without_a_surrogate() -> None:
    assert Grond().preview_trigger(16, 0) is None
    with pytest.raises(SettingError, match="needs a surrogate"):
        Grond().make_trigger(16, 0)
