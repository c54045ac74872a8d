"""Claims of trainables.attacks.lf and smooth: the filter, DeepFool, the spectrum of both signals, their origin."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from superft.testing.attack_subject import CPU, carry_out
from superft.testing.claims import assert_changes_at_most, assert_gate
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import ATTACKS
from trainables.attacks.fixed import AdditiveTrigger
from trainables.attacks.lf import LowFrequency
from trainables.attacks.smooth import (
    LONGEST,
    low_frequency_share,
    low_pass,
    random_signal,
    stretched,
    targeted_deepfool,
    targeted_deepfool_of_many,
    universal_signal,
)
from trainables.attacks.triggers import stamp
from trainables.data.images import Dataset, to_float
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer, obtain_victim

SEEDS = range(10)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LinearScores(nn.Module):
    """Logits a * x + b of the summed pixels' weights, on float images."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T + self.bias


def test_filter_is_linear_and_separates_channels() -> None:
    a, b = torch.randn(2, 1, 3, 32, 32, generator=stream())
    torch.testing.assert_close(low_pass(2 * a - 3 * b), 2 * low_pass(a) - 3 * low_pass(b), atol=1e-5, rtol=0)
    only_red = a * torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert float(low_pass(only_red)[:, 1:].abs().max()) == 0.0
    torch.testing.assert_close(low_pass(only_red)[:, 0], low_pass(a)[:, 0])


def test_filter_keeps_constants_inside_and_fades_towards_the_border() -> None:
    ones = torch.ones(1, 3, 96, 96)
    # 30 taps at 32 pixels are 90 at 96: only the very middle sees no border.
    filtered = low_pass(ones)[0, 0]
    assert float(filtered[47, 47]) == pytest.approx(1.0, abs=1e-5)
    assert float(filtered[0, 0]) < 0.3
    assert torch.equal(low_pass(ones, circular=True).round(decimals=5), ones)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_filter_is_the_papers_at_32_pixels_and_scales_with_the_image(size: int) -> None:
    impulse = torch.zeros(1, 1, size, size)
    impulse[0, 0, size // 2, size // 2] = 1.0
    answer = low_pass(impulse)[0, 0]
    assert answer.shape == (size, size)
    assert float(answer.sum()) == pytest.approx(1.0, abs=1e-3)
    profile = answer.sum(1)
    position = torch.arange(size, dtype=torch.float32)
    mean = (profile * position).sum()
    deviation = float((profile * (position - mean) ** 2).sum().sqrt())
    assert deviation == pytest.approx(5.7 * size / 32, rel=0.1)
    if size == 32:
        # 30 taps, 14 before and 15 after; the kernel is its own mirror image.
        taps = torch.exp(-0.5 * ((torch.arange(30) - 14.5) * 5 / 30) ** 2)
        torch.testing.assert_close(profile[1:31], taps / taps.sum(), atol=1e-6, rtol=0)
        assert float(profile[[0, 31]].abs().max()) == 0.0


def test_deepfool_on_two_linear_classes_is_the_closed_form() -> None:
    weight, bias = torch.randn(2, 3 * 16, generator=stream()), torch.tensor([0.4, 0.0])
    image = torch.rand(3, 4, 4, generator=stream(1))
    scores = LinearScores(weight, bias)
    origin = int(scores(image[None]).argmax())
    way, reached, gradients = targeted_deepfool(scores, image, 1 - origin)
    normal = (weight[1 - origin] - weight[origin]).view(3, 4, 4)
    gap = float(scores(image[None])[0] @ torch.tensor([1.0, -1.0]))
    expected = 1.02 * abs(gap) / float(normal.square().sum()) * normal
    assert reached
    assert gradients == 1
    torch.testing.assert_close(way, expected, atol=1e-5, rtol=1e-4)
    assert int(scores((image + way)[None]).argmax()) == 1 - origin


def test_deepfool_of_an_image_in_the_target_class_is_nothing() -> None:
    scores = LinearScores(torch.randn(3, 48, generator=stream()), torch.zeros(3))
    image = torch.rand(3, 4, 4, generator=stream(1))
    way, reached, gradients = targeted_deepfool(scores, image, int(scores(image[None]).argmax()))
    assert (reached, gradients, float(way.abs().max())) == (True, 0, 0.0)


def test_deepfool_gives_up_at_its_limit_without_gradient_and_where_the_way_explodes() -> None:
    image = torch.rand(3, 4, 4, generator=stream())
    # Class 2 stays one above the target, class 0, whatever the input.
    shared = torch.randn(48, generator=stream(1))
    hopeless = LinearScores(torch.stack([shared, -shared, shared]), torch.tensor([0.0, 40.0, 1.0]))
    way, reached, gradients = targeted_deepfool(hopeless, image, 0, steps=1)
    assert (reached, gradients) == (False, 1)
    assert 0.0 < float(way.abs().max()) <= 1.02 * LONGEST
    assert not targeted_deepfool(hopeless, image, 0)[1]
    blind = LinearScores(torch.zeros(2, 48), torch.tensor([1.0, 0.0]))
    assert targeted_deepfool(blind, image, 1)[1:] == (False, 1)
    weak = LinearScores(torch.stack([torch.zeros(48), torch.full((48,), 1e-6)]), torch.tensor([1.0, 0.0]))
    assert targeted_deepfool(weak, image, 1)[1:] == (False, 1)


def test_deepfool_of_many_is_that_of_each(surrogate: Classifier) -> None:
    """An image that is in its target class already, those that get there and those that do not, side by side.

    In float64: in float32 passes of one image and of many differ by 1e-7, which 25 steps across kinks make 0.02.
    """
    model = copy.deepcopy(surrogate).double()
    images = to_float(toy_dataset(train=600).train.images[:12]).double()
    with torch.no_grad():
        predicted = model(images).argmax(1)
    targets = torch.cat([predicted[:1], predicted[:-1]])
    for steps in (3, 40):
        ways, reached, gradients = targeted_deepfool_of_many(model, images, targets, steps=steps)
        alone = [
            targeted_deepfool(model, image, int(target), steps=steps)
            for image, target in zip(images, targets, strict=True)
        ]
        assert reached.tolist() == [there for _, there, _ in alone]
        assert gradients == sum(taken for _, _, taken in alone)
        assert alone[0][1:] == (True, 0)
        torch.testing.assert_close(ways, torch.stack([way for way, _, _ in alone]), atol=1e-9, rtol=0)


def test_images_pushed_together_make_a_signal_too(surrogate: Classifier) -> None:
    one, four = generated(surrogate), generated(surrogate, deepfool_batch=4)
    assert four.origin["source"] == "adversarial"
    assert not torch.equal(one.signal, four.signal)
    assert low_frequency_share(four.signal, 2) >= 0.95
    test = to_float(toy_dataset(train=600, test=200).test.images)
    with torch.no_grad():
        changed = surrogate(test).argmax(1) != surrogate(four(test)).argmax(1)
    assert float(changed.float().mean()) > 0.1


def test_universal_signal_fools_a_linear_model_and_stops_at_its_fooling_rate() -> None:
    # Class 1 likes brightness: adding a non-negative signal turns images into it.
    weight = torch.stack([torch.zeros(3 * 64), torch.ones(3 * 64)])
    scores = LinearScores(weight, torch.tensor([0.0, -0.55 * 192]))
    images = torch.rand(30, 3, 8, 8, generator=stream())
    held_out = torch.rand(200, 3, 8, 8, generator=stream(1))
    assert float((scores(held_out).argmax(1) == 1).float().mean()) < 0.1
    found = universal_signal(scores, images, held_out, torch.ones_like, stream(2), amplitude=0.2)
    assert found.signal is not None
    assert found.fooling_rate >= 0.2
    assert found.passes == 1
    assert float(found.signal.min()) == 0.0
    assert float(found.signal.max()) == pytest.approx(0.2)
    changed = scores(held_out + found.signal).argmax(1) != scores(held_out).argmax(1)
    assert float(changed.float().mean()) == pytest.approx(found.fooling_rate)


def test_universal_signal_ends_when_more_passes_change_nothing() -> None:
    blind = LinearScores(torch.zeros(2, 48), torch.tensor([1.0, 0.0]))
    images = torch.rand(4, 3, 4, 4, generator=stream())
    found = universal_signal(blind, images, images, torch.ones_like, stream(), amplitude=0.2)
    assert found.signal is None
    assert (found.passes, found.fooling_rate) == (5, 0.0)


def test_a_plane_wave_has_all_its_power_at_its_frequency() -> None:
    wave = torch.sin(2 * torch.pi * 3 * torch.arange(32) / 32).expand(3, 32, 32) + 5.0
    assert low_frequency_share(wave, 2.9) == pytest.approx(0.0, abs=1e-9)
    assert low_frequency_share(wave, 3.0) == pytest.approx(1.0)


@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_random_signal_has_the_spectrum_of_the_published_arrays(image_size: int) -> None:
    for seed in SEEDS:
        signal = LowFrequency(source="random").make_trigger(image_size, seed).signal
        assert low_frequency_share(signal, 1) > 0.8
        assert low_frequency_share(signal, 2) > 0.95


@pytest.mark.parametrize("amplitude", [0.2, 0.4])
def test_signal_reaches_0_and_its_amplitude_exactly_on_grey_levels(amplitude: float) -> None:
    signal = LowFrequency(source="random", amplitude=amplitude).make_trigger(32, 0).signal
    levels = signal * 255
    assert torch.equal(levels.round(), levels.round(decimals=3))
    assert (float(levels.min().round()), float(levels.max().round())) == (0.0, 255 * amplitude)
    assert_changes_at_most(LowFrequency(source="random", amplitude=amplitude), levels=round(255 * amplitude))


def test_signal_is_added_and_clipped_and_does_not_wrap_around() -> None:
    trigger = LowFrequency(source="random").make_trigger(16, 0)
    levels = (trigger.signal * 255).round().int()
    grey, white = (torch.full((1, 3, 16, 16), value, dtype=torch.uint8) for value in (100, 250))
    assert torch.equal(stamp(trigger, grey)[0].int(), 100 + levels)
    assert torch.equal(stamp(trigger, white)[0].int(), (250 + levels).clamp(max=255))


def test_flat_signals_stretch_to_nothing() -> None:
    assert torch.equal(stretched(torch.full((3, 4, 4), 2.0), 0.2), torch.zeros(3, 4, 4))
    assert not torch.equal(random_signal(16, stream(0)), random_signal(16, stream(1)))


@pytest.fixture(scope="module")
def surrogate() -> Classifier:
    """A clean model that has learned the toy well enough."""
    data = toy_dataset(train=600)
    trainer = make_trainer(toy_spec("clean", width=4), data, CPU, seed=0)
    recipe = TrainingRecipe(epochs=6, batch_size=32, lr=0.05, schedule="one_cycle")
    return trainer.train_from_scratch(data.train, recipe)


def made_by(attack: LowFrequency, surrogate: Classifier, data: Dataset, trainer: Trainer) -> AdditiveTrigger:
    return attack.trigger_from(attack.find(surrogate, data.train, trainer), data.image_size, trainer)


def generated(surrogate: Classifier, seed: int = 0, **settings: object) -> AdditiveTrigger:
    data = toy_dataset(train=600)
    attack = ATTACKS.create("lf", {"draws": 10, "max_passes": 1, **settings})
    assert isinstance(attack, LowFrequency)
    return made_by(attack, surrogate, data, make_trainer(toy_spec("clean", width=4), data, CPU, seed=seed))


def test_adversarial_signal_has_the_spectrum_of_the_published_arrays(surrogate: Classifier) -> None:
    for seed in range(2):
        trigger = generated(surrogate, seed)
        assert trigger.origin["source"] == "adversarial"
        levels = (trigger.signal * 255).round()
        assert (float(levels.min()), float(levels.max())) == (0.0, 51.0)
        assert low_frequency_share(trigger.signal, 2) >= 0.95


def test_adversarial_signal_is_made_for_the_surrogate_and_by_the_seed(surrogate: Classifier) -> None:
    first = generated(surrogate)
    assert torch.equal(first.signal, generated(surrogate).signal)
    assert not torch.equal(first.signal, generated(surrogate, seed=1).signal)
    json.dumps(first.settings(), allow_nan=False)
    # It moves predictions of images it never saw.
    test = to_float(toy_dataset(train=600, test=200).test.images)
    with torch.no_grad():
        changed = surrogate(test).argmax(1) != surrogate(first(test)).argmax(1)
    assert float(changed.float().mean()) > 0.1


def test_gradients_of_the_generation_are_counted_and_leave_the_surrogate_as_it_is(surrogate: Classifier) -> None:
    data = toy_dataset(train=600)
    trainer = make_trainer(toy_spec("clean", width=4), data, CPU, seed=0)
    before = [tensor.clone() for tensor in surrogate.state_dict().values()]
    trigger = made_by(LowFrequency(draws=4, max_passes=1), surrogate, data, trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, surrogate.state_dict().values(), strict=True))
    assert trainer.counters.input_backward_samples == trigger.origin["deepfool_gradients"] > 0
    assert trainer.counters.backward_samples == 0


def test_surrogate_that_cannot_be_moved_gives_the_random_signal_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    data = toy_dataset()
    trainer = make_trainer(toy_spec("clean"), data, CPU, seed=0)
    model = trainer.fresh_model()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.eye(10)[0])
    trigger = made_by(LowFrequency(draws=10), model.eval(), data, trainer)
    assert trigger.settings()["source"] == "random (surrogate useless)"
    assert float(trigger.signal.max()) == pytest.approx(0.2)
    assert "random signal" in caplog.text


def test_surrogate_has_other_weights_than_the_victim_and_both_trainings_are_counted() -> None:
    data = toy_dataset()
    spec = toy_spec("lf")
    trainer = make_trainer(spec, data, CPU, seed=0)
    spec.make_attack().implant(data.train, trainer, spec.recipe)
    assert trainer.counters.steps == 2 * spec.recipe.steps(len(data.train))


def test_training_and_test_images_carry_the_same_signal() -> None:
    made = carry_out(toy_spec("lf"), toy_dataset())
    poisoned, trigger = made.implanted.poisoned, made.implanted.trigger
    original = made.data.train.images[poisoned.indices]
    assert torch.equal(poisoned.images, stamp(trigger, original))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "frequency"}, "attack.lf.source must be one of adversarial, random, got 'frequency'"),
        ({"amplitude": 0.0}, "amplitude must be in [1/255, 1], got 0.0"),
        ({"amplitude": 1.5}, "amplitude must be in [1/255, 1], got 1.5"),
        ({"draws": 0}, "draws must be >= 1, got 0"),
        ({"draws": 200}, "at most 199 of 200, got 200"),
        ({"max_passes": 0}, "max_passes must be >= 1, got 0"),
        ({"source": "random", "draws": 50}, "draws is a setting of the adversarial source"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        ATTACKS.create("lf", settings).check(torch.arange(200) % 10, 10, 16)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adversarial_signal_cannot_be_had_without_a_surrogate() -> None:
    assert LowFrequency().preview_trigger(16, 0) is None
    with pytest.raises(SettingError, match="needs a surrogate"):
        LowFrequency().make_trigger(16, 0)


@pytest.mark.slow
def test_gate() -> None:
    assert_gate("lf", asr=0.6, asr_base=0.1, source="random", amplitude=0.4)


def test_victims_of_other_poison_rates_share_signal_and_surrogate(tmp_path: Path) -> None:
    data, store = toy_dataset(), Store(tmp_path)
    first = obtain_victim(toy_spec("lf"), data, store, CPU)
    second = obtain_victim(toy_spec("lf", poison_rate=0.3), data, store, CPU)
    other = obtain_victim(toy_spec("lf", target_label=1), data, store, CPU)
    assert torch.equal(first.trigger.signal, second.trigger.signal)
    assert not torch.equal(first.trigger.signal, other.trigger.signal)
    steps = [victim.facts["counters"]["steps"] for victim in (first, second, other)]
    assert steps[1] == steps[0] // 2  # the victim's own training only
    assert steps[2] == steps[1]  # another signal, from the same surrogate
