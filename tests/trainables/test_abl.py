"""Anti-backdoor learning: gates, isolation, ascent."""

import copy

import pytest
import torch

from tests.toy import toy_dataset
from trainables.data import Dataset, ImageSet
from trainables.defenses.abl import AntiBackdoorLearning, canonical_order, isolate, sample_losses
from trainables.defenses.base import DEFENSES, PoisonedData
from trainables.registry import SettingError
from trainables.trainer import Trainer

# A clipping that binds and a gate near the first losses (log 10): after few steps the inherited suite sees both.
SMALL = {"grad_clip": 0.1, "gamma": 2.3}


def gradient(defense: AntiBackdoorLearning, *losses: float) -> list[float]:
    values = torch.tensor(losses, requires_grad=True)
    defense.gated(values).backward()
    assert values.grad is not None
    return [float(value) for value in values.grad]


def test_the_gate_descends_above_gamma_and_ascends_below() -> None:
    defense = AntiBackdoorLearning(gamma=0.5)
    assert gradient(defense, 0.9, 0.7) == [0.5, 0.5]
    assert gradient(defense, 0.3, 0.1) == [-0.5, -0.5]
    # The batch mean decides for all of a batch.
    assert gradient(defense, 0.1, 1.9) == [0.5, 0.5]


def test_the_gate_has_the_value_of_its_formula_and_the_gradient_of_local_gradient_ascent() -> None:
    defense = AntiBackdoorLearning(gamma=0.5)
    for loss, expected in ((0.2, 0.8), (0.9, 0.9), (0.5, 0.5)):
        assert float(defense.gated(torch.tensor([loss]))) == pytest.approx(expected)
        value = torch.tensor([loss], requires_grad=True)
        ((value - 0.5).sign() * value).sum().backward()
        assert value.grad is not None
        assert gradient(defense, loss) == value.grad.tolist()


def test_a_gate_per_sample_decides_for_each_sample() -> None:
    assert gradient(AntiBackdoorLearning(gate_on="sample", gamma=0.5), 0.1, 1.9) == [-0.5, 0.5]


def test_the_lowest_losses_are_isolated() -> None:
    losses = torch.tensor([0.5, 0.1, 0.3, 0.1, 0.9, 0.0])
    assert isolate(losses, 3).tolist() == [1, 3, 5]
    assert isolate(losses, 2).tolist() == [1, 5]


def test_poison_that_is_learned_best_is_isolated_without_error() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = 0.5 + torch.rand(1000, generator=generator)
    poison = torch.randperm(1000, generator=generator)[:10]
    losses[poison] = 0.01 * torch.rand(10, generator=generator)
    found = isolate(losses, AntiBackdoorLearning(isolation_ratio=0.01).isolated(1000))
    assert found.tolist() == poison.sort().values.tolist()


def test_at_least_one_sample_is_isolated() -> None:
    defense = AntiBackdoorLearning(isolation_ratio=0.01)
    assert [defense.isolated(n) for n in (4, 149, 151, 50_000)] == [1, 1, 2, 500]


def test_losses_are_taken_in_whole_batches_without_augmentation(toy: Dataset, trainer: Trainer) -> None:
    model = trainer.fresh_model()
    calls = list[int]()
    model.neck.register_forward_hook(lambda _module, _inputs, output: calls.append(len(output)))
    losses = sample_losses(model, toy.train, trainer)
    assert calls == [200]
    assert trainer.counters.forward_samples == 200
    logits = model(toy.train.images.float() / 255)
    expected = torch.nn.functional.cross_entropy(logits, toy.train.labels, reduction="none").double()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def short(**settings: object) -> AntiBackdoorLearning:
    defense = DEFENSES.create(
        "abl", {"tuning_epochs": 2, "finetuning_epochs": 1, "isolation_ratio": 0.1, "lr": 0.05, **settings}
    )
    assert isinstance(defense, AntiBackdoorLearning)
    return defense


def outcome(defense: AntiBackdoorLearning, data: ImageSet, trainer: Trainer) -> tuple[dict[str, torch.Tensor], float]:
    """Weights after the repair, and the mean loss of what was isolated."""
    found = defense.repair(trainer.fresh_model(), PoisonedData(data), trainer)
    assert found.removed is not None
    return dict(found.model.state_dict()), float(sample_losses(found.model, data.subset(found.removed), trainer).mean())


def test_ascent_raises_the_loss_of_the_isolated_samples(toy: Dataset, trainer: Trainer) -> None:
    before = outcome(short(unlearning_epochs=0), toy.train, trainer)[1]
    after = outcome(short(unlearning_epochs=10, unlearn_lr=0.01), toy.train, trainer)[1]
    assert after > before + 0.1


def test_ascent_is_bounded_by_the_clipped_gradient(toy: Dataset, trainer: Trainer) -> None:
    # Without a bound the loss runs away; a tight one holds the weights within steps * lr * clip / (1 - momentum).
    free = outcome(short(unlearning_epochs=0), toy.train, trainer)[0]
    bound = outcome(short(unlearning_epochs=30, unlearn_lr=0.1, grad_clip=1e-3, weight_decay=0.0), toy.train, trainer)[
        0
    ]
    free = outcome(short(unlearning_epochs=0, weight_decay=0.0), toy.train, trainer)[0]
    moved = sum(float((bound[key] - free[key]).double().square().sum()) for key in free) ** 0.5
    assert 0.0 < moved <= 30 * 0.1 * 1e-3 / (1 - 0.9) + 1e-6


def test_without_unlearning_the_last_stage_is_the_identity(toy: Dataset, trainer: Trainer) -> None:
    defense = short(unlearning_epochs=0)
    states = [outcome(defense, toy.train, trainer)[0] for _ in range(2)]
    other = outcome(short(unlearning_epochs=0, unlearn_lr=0.5, grad_clip=0.1), toy.train, trainer)[0]
    for state in (states[1], other):
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_unlearning_leaves_running_statistics_to_the_task(toy: Dataset, trainer: Trainer) -> None:
    before = outcome(short(unlearning_epochs=0), toy.train, trainer)[0]
    after = outcome(short(unlearning_epochs=5, unlearn_lr=0.01), toy.train, trainer)[0]
    statistics = [key for key in before if "running_" in key]
    assert statistics
    assert all(torch.equal(before[key], after[key]) for key in statistics)


def test_the_victim_is_not_looked_at(toy: Dataset, trainer: Trainer) -> None:
    defense = short(unlearning_epochs=1)
    one, other = (
        defense.repair(trainer.fresh_model(seed), PoisonedData(toy.train), trainer).model.state_dict()
        for seed in ("a", "b")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_canonical_order_belongs_to_the_samples_not_to_their_places() -> None:
    data = toy_dataset(train=50).train
    shuffled = data.subset(torch.randperm(50, generator=torch.Generator().manual_seed(1)))
    one, other = data.subset(canonical_order(data)), shuffled.subset(canonical_order(shuffled))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    relabelled = ImageSet(data.images, copy.deepcopy(data.labels).roll(1))
    assert not torch.equal(canonical_order(relabelled), canonical_order(data))


@pytest.mark.parametrize(
    "settings",
    [
        {"tuning_epochs": 0},
        {"finetuning_epochs": -1},
        {"unlearning_epochs": -1},
        {"gamma": -0.1},
        {"isolation_ratio": 0.0},
        {"isolation_ratio": 0.7},
        {"unlearn_lr": 0.0},
        {"grad_clip": 0.0},
        {"batch_size": 1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"abl: {next(iter(settings))} must be"):
        DEFENSES.create("abl", settings)
