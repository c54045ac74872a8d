"""Claims of trainables.attacks.inputaware: a trigger per image, cross samples, two stages."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from superft.testing.claims import GATE
from tests.toy import toy_dataset, toy_spec
from trainables.attacks.base import ATTACKS, Kind
from trainables.attacks.generators import Generator
from trainables.attacks.in_loop import batch_count, bernoulli_round, draw_samples
from trainables.attacks.inputaware import InputAware, InputAwareTrigger, _distance, _diversity, _other_indices
from trainables.data.images import Dataset, to_float
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.storage.store import Store
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer
from trainables.victims.make import obtain_victim

RECIPE = TrainingRecipe(epochs=1, batch_size=40, lr=0.05)
SMALL = InputAware(generator_width=4)


def new_trigger(seed: int = 0) -> InputAwareTrigger:
    trigger = InputAwareTrigger(16, 4, 2, [0.4, 0.5, 0.3], [0.2, 0.3, 0.25], generator_for(seed, "test"))
    return trigger.eval().requires_grad_(False)


@pytest.fixture
def images(toy: Dataset) -> Tensor:
    return to_float(toy.train.images[:40])


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.state_dict()))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def test_generators_have_the_published_sizes() -> None:
    assert sum(parameter.numel() for parameter in Generator(3, 32, 3).parameters()) == 723_273
    assert sum(parameter.numel() for parameter in Generator(1, 32, 3).parameters()) == 722_691


@pytest.mark.parametrize("size", [16, 21, 28, 32, 64])
def test_generators_keep_the_size_of_the_image(size: int) -> None:
    drawn = Generator(1, 2, 3)(torch.rand(2, 3, size, size))
    assert drawn.shape == (2, 1, size, size)
    assert float(drawn.detach().min()) >= 0.0
    assert float(drawn.detach().max()) <= 1.0


def test_default_generators_follow_the_image_size(trainer: Trainer) -> None:
    normalize = trainer.fresh_model().normalize
    for size, width, levels in ((16, 16, 2), (28, 16, 2), (32, 32, 3), (64, 32, 3)):
        trigger = InputAware().new_trigger(size, normalize, trainer)
        assert (trigger.width, trigger.levels) == (width, levels)


def test_generator_weights_come_from_the_given_stream_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (state_of(new_trigger(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)


def test_trigger_is_the_convex_mix_in_pixels_and_in_normalised_pixels(images: Tensor) -> None:
    trigger = new_trigger()
    stamped, pattern, mask = trigger(images), trigger.patterns(images), trigger.masks(images)
    assert mask.shape == (40, 1, 16, 16)
    torch.testing.assert_close(stamped, images * (1 - mask) + pattern * mask)
    normalised = trigger.normalize(images)
    torch.testing.assert_close(
        trigger.normalize(stamped), normalised + (trigger.normalize(pattern) - normalised) * mask, atol=1e-5, rtol=1e-5
    )


def test_pixels_stay_where_the_mask_is_shut(images: Tensor) -> None:
    trigger = new_trigger()
    *_, last = (module for module in trigger.mask.modules() if isinstance(module, torch.nn.BatchNorm2d))
    last.bias.fill_(-20.0)
    last.weight.fill_(0.0)
    assert float(trigger.masks(images).max()) < 1e-6
    torch.testing.assert_close(trigger(images), images, atol=1e-6, rtol=0)


def test_different_images_get_different_patterns_and_masks(images: Tensor) -> None:
    trigger = new_trigger()
    for drawn in (trigger.patterns(images), trigger.masks(images)):
        assert float(_distance(drawn[:20], drawn[20:]).min()) > 0.0


def test_distance_is_the_root_mean_square_with_a_gradient_even_at_zero() -> None:
    a, b = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 3, 4, 4)
    b[1] = 0.5
    assert _distance(a, b).tolist() == pytest.approx([1e-6, 0.5])
    _diversity(b, a.detach(), a, b).backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())


def test_batch_holds_own_triggers_then_foreign_ones_under_true_labels_then_clean_images(
    images: Tensor, toy: Dataset, trainer: Trainer
) -> None:
    trigger, labels, donors = new_trigger(), toy.train.labels[:40], to_float(toy.train.images[40:80])
    attack = dataclasses.replace(SMALL, target_label=3)
    mixed, wanted, spread = attack.mix(trigger, images, labels, donors, (4, 4), trainer)
    torch.testing.assert_close(mixed[:4], trigger(images[:4]))
    torch.testing.assert_close(mixed[4:8], trigger.paste(images[4:8], donors[4:8]))
    assert not torch.allclose(mixed[4:8], trigger(images[4:8]))
    assert torch.equal(mixed[8:], images[8:])
    assert wanted[:4].tolist() == [3] * 4
    assert torch.equal(wanted[4:], labels[4:])
    expected = _distance(trigger.normalize(images[:4]), trigger.normalize(donors[4:8])) / (
        _distance(trigger.normalize(trigger.patterns(images[:4])), trigger.normalize(trigger.patterns(donors[4:8])))
        + 1e-7
    )
    assert float(spread) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_batch_without_poison_is_the_clean_batch(images: Tensor, toy: Dataset, trainer: Trainer) -> None:
    labels = toy.train.labels[:40]
    mixed, wanted, spread = SMALL.mix(new_trigger(), images, labels, images, (0, 0), trainer)
    assert mixed is images
    assert wanted is labels
    assert spread == 0.0


@pytest.mark.parametrize(("cross_ratio", "rate"), [(0.0, 1.0), (0.5, 0.2), (3.0, 0.25)])
def test_any_share_of_cross_samples_trains(cross_ratio: float, rate: float, toy: Dataset, trainer: Trainer) -> None:
    attack = dataclasses.replace(SMALL, cross_ratio=cross_ratio, poison_rate=rate, mask_epochs=0.2)
    made = attack.implant(toy.train, trainer, dataclasses.replace(RECIPE, epochs=0.4))
    poison = int((made.poisoned.kinds == Kind.POISON).sum())
    assert poison == round(rate * 200)
    assert len(made.poisoned) - poison == min(round(cross_ratio * poison), 200 - poison)


def test_masks_are_frozen_in_the_second_stage_and_patterns_in_the_first(toy: Dataset, trainer: Trainer) -> None:
    model = trainer.fresh_model()
    trigger = SMALL.new_trigger(16, model.normalize, trainer)
    pattern, mask = state_of(trigger.pattern), state_of(trigger.mask)
    SMALL.train_masks(trigger, toy.train, trainer, RECIPE)
    assert same(pattern, state_of(trigger.pattern))
    assert not same(mask, state_of(trigger.mask))
    mask, before = state_of(trigger.mask), state_of(model)
    SMALL.train_jointly(model, trigger, toy.train, trainer, RECIPE)
    assert same(mask, state_of(trigger.mask))
    assert not same(pattern, state_of(trigger.pattern))
    assert not same(before, state_of(model))


def joint(attack: InputAware, toy: Dataset, trainer: Trainer, steps: int) -> dict[str, Tensor]:
    model = trainer.fresh_model()
    trigger = attack.new_trigger(16, model.normalize, trainer)
    trigger.mask.eval().requires_grad_(False)
    attack.train_jointly(model, trigger, toy.train, trainer, dataclasses.replace(RECIPE, epochs=steps / 5))
    return state_of(trigger.pattern)


def test_the_generators_gradient_starts_anew_every_step_unless_asked_otherwise(toy: Dataset, trainer: Trainer) -> None:
    parity = dataclasses.replace(SMALL, accumulate_generator_grad=True)
    assert same(joint(SMALL, toy, trainer, 1), joint(parity, toy, trainer, 1))
    assert not same(joint(SMALL, toy, trainer, 3), joint(parity, toy, trainer, 3))


def test_mask_epochs_are_on_top_of_the_classifiers(toy: Dataset, trainer: Trainer) -> None:
    SMALL.implant(toy.train, trainer, dataclasses.replace(RECIPE, epochs=4))
    assert trainer.counters.steps == 4 * 5 + 5  # and a quarter of them for the masks


def test_masks_become_small(toy: Dataset, trainer: Trainer) -> None:
    attack = dataclasses.replace(SMALL, mask_epochs=20.0)
    trigger = attack.new_trigger(16, trainer.fresh_model().normalize, trainer)
    with torch.no_grad():
        before = float(trigger.eval().masks(to_float(toy.test.images)).mean())
        trigger.train()
    attack.train_masks(trigger, toy.train, trainer, RECIPE)
    with torch.no_grad():
        masks = trigger.masks(to_float(toy.test.images))
    assert before > 0.2
    assert float(masks.mean()) <= 3 * attack.mask_density
    assert float(_distance(masks[:50], masks[50:]).mean()) > 0.0


def test_released_cross_samples_carry_foreign_triggers(toy: Dataset, trainer: Trainer) -> None:
    trigger = new_trigger()
    made = SMALL.released(toy.train, trigger, trainer)
    cross = made.kinds == Kind.CROSS
    assert (int(cross.sum()), int((~cross).sum())) == (20, 20)
    own = SMALL.triggered_test(trigger, toy.train.subset(made.indices), 10)
    assert not torch.equal(made.images[cross], own.images[: int(cross.sum())])
    assert torch.equal(made.labels[cross], toy.train.labels[made.indices[cross]])


def test_donors_are_other_images() -> None:
    indices = torch.arange(50)
    donors = _other_indices(indices, 50, generator_for(0, "x"))
    assert not bool((donors == indices).any())
    assert int(donors.min()) >= 0
    assert int(donors.max()) < 50


def test_cross_accuracy_and_density_are_reported(toy: Dataset, trainer: Trainer) -> None:
    trigger, model = new_trigger(), trainer.fresh_model().eval()
    found = SMALL.extra_metrics(model, trigger, toy.test, trainer)
    assert found == SMALL.extra_metrics(model, trigger, toy.test, trainer)
    assert 0.0 <= found["cross_accuracy"] <= 1.0
    with torch.no_grad():
        assert found["mask_density"] == pytest.approx(float(trigger.masks(to_float(toy.test.images)).mean()))


def test_counts_of_a_batch_are_floors_or_one_at_random() -> None:
    generator = generator_for(0, "x")
    assert [batch_count(0.1, size, generator) for size in (128, 64, 10)] == [12, 6, 1]
    assert batch_count(0.29, 100, generator) == 29
    few = [batch_count(0.01, 32, generator) for _ in range(2000)]
    assert set(few) == {0, 1}
    assert sum(few) / 2000 == pytest.approx(0.32, abs=0.04)
    rounded = [bernoulli_round(2.3, generator) for _ in range(2000)]
    assert set(rounded) == {2, 3}
    assert sum(rounded) / 2000 == pytest.approx(2.3, abs=0.04)


def test_drawn_samples_are_disjoint_sorted_and_of_the_data_poisoners_stream(toy: Dataset) -> None:
    poison, cross = draw_samples(200, 20, 30, seed=0)
    assert len(set(poison.tolist()) | set(cross.tolist())) == 50
    assert poison.tolist() == sorted(poison.tolist())
    badnets = ATTACKS.create("badnets", {"poison_rate": 0.1})
    assert torch.equal(poison, badnets.choose(toy.train.labels, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="cannot draw 250 samples of 200"):
        draw_samples(200, 250, seed=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"poison_rate": 0.6}, "poison_rate"),
        ({"poison_rate": 0.0}, "poison_rate"),
        ({"mask_epochs": 0.0}, "mask_epochs"),
        ({"mask_density": 1.0}, "mask_density"),
        ({"norm_weight": -1.0}, "norm_weight"),
        ({"diversity_weight": -1.0}, "diversity_weight"),
        ({"generator_lr": 0.0}, "generator_lr"),
        ({"generator_width": 0}, "generator_width"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        ATTACKS.create("inputaware", settings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_gate(seed: int, toy_store: Store) -> None:
    data = toy_dataset(train=2000, test=600)
    spec = toy_spec("inputaware", seed=seed, width=8, recipe=GATE, generator_width=8)
    victim = obtain_victim(spec, data, toy_store, torch.device("cpu"))
    extra = victim.facts["extra_metrics"]
    assert victim.evaluation.full.clean_accuracy > 0.9
    assert victim.evaluation.full.asr > 0.2
    assert extra["cross_accuracy"] > 0.5
    assert extra["mask_density"] < 0.1
