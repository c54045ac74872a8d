"""Anti-backdoor learning: gates, isolation, ascent."""

import copy
from typing import Any

import pytest
import torch

from superft.testing.defense_subject import same
from tests.toy import toy_dataset, toy_spec
from trainables.data.images import Dataset, ImageSet
from trainables.defenses.abl import AntiBackdoorLearning, canonical_order, isolate, sample_losses
from trainables.defenses.base import DEFENSES, PoisonedData
from trainables.models.classifier import Classifier
from trainables.registry import SettingError
from trainables.training.loop import Augmentation, History, Optimizer
from trainables.training.trainer import Trainer
from trainables.victims.make import make_trainer


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


def test_at_least_two_samples_are_isolated() -> None:
    defense = AntiBackdoorLearning(isolation_ratio=0.01)
    assert [defense.isolated(n) for n in (4, 149, 251, 50_000)] == [2, 2, 3, 500]


def test_losses_are_taken_in_whole_batches_without_augmentation(toy: Dataset, trainer: Trainer) -> None:
    model = trainer.fresh_model()
    calls = list[int]()
    model.neck.register_forward_hook(lambda _module, _inputs, output: calls.append(len(output)))
    losses = sample_losses(model, toy.train, trainer)
    assert calls == [200]
    assert trainer.counters.forward_samples == 200
    logits = model.eval()(toy.train.images.float() / 255)
    expected = torch.nn.functional.cross_entropy(logits, toy.train.labels, reduction="none").double()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_losses_of_what_is_all_but_certain_are_still_told_apart(
    toy: Dataset, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32 both would be 0, and the first in order would be isolated.
    model = trainer.fresh_model()
    monkeypatch.setattr(model, "forward", lambda _images: torch.tensor([[20.0, 0.0], [25.0, 0.0]]))
    data = ImageSet(toy.train.images[:2], torch.zeros(2, dtype=torch.int64))
    assert isolate(sample_losses(model, data, trainer), 1).tolist() == [1]


def short(**settings: object) -> AntiBackdoorLearning:
    defense = DEFENSES.create(
        "abl", {"tuning_epochs": 2, "finetuning_epochs": 1, "isolation_ratio": 0.1, "lr": 0.05, **settings}
    )
    assert isinstance(defense, AntiBackdoorLearning)
    return defense


def bench(data: Dataset) -> Trainer:
    """One for every repair: a shared one would hand the second what the first one remembered."""
    return make_trainer(toy_spec("clean"), data, torch.device("cpu"), seed=0)


def outcome(defense: AntiBackdoorLearning, data: Dataset) -> tuple[dict[str, torch.Tensor], float]:
    """Weights after the repair, and the mean loss of what was isolated."""
    trainer = bench(data)
    found = defense.repair(trainer.fresh_model(), PoisonedData(data.train), trainer)
    assert found.removed is not None
    losses = sample_losses(found.model, data.train.subset(found.removed), trainer)
    return dict(found.model.state_dict()), float(losses.mean())


def test_what_is_isolated_has_the_lowest_losses_of_the_gated_model(toy: Dataset) -> None:
    # Without later stages that model is returned: its plain losses, by place, are all that may count.
    trainer = bench(toy)
    defense = short(finetuning_epochs=0, unlearning_epochs=0)
    found = defense.repair(trainer.fresh_model(), PoisonedData(toy.train), trainer)
    losses = sample_losses(found.model, toy.train, trainer)
    assert found.scores is not None
    assert found.removed is not None
    torch.testing.assert_close(found.scores, -losses)
    assert found.removed.tolist() == isolate(losses, 20).tolist()


def test_each_stage_trains_on_its_samples_at_its_rate(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = dict[str, dict[str, Any]]()

    def spy(self: Trainer, model: Classifier, data: ImageSet, *, purpose: str, **settings: Any) -> History:
        rates = [settings["lr_at"](step) for step in range(settings["steps"])]
        stages[purpose] = {**settings, "n": len(data), "rates": rates, "before": copy.deepcopy(model.state_dict())}
        history = fit(self, model, data, purpose=purpose, **settings)
        stages[purpose]["after"] = copy.deepcopy(model.state_dict())
        return history

    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", spy)
    outcome(short(finetuning_epochs=3, unlearning_epochs=2, unlearn_lr=0.01), toy)
    tuning, finetuning, unlearning = (stages[f"abl-{name}"] for name in ("tuning", "finetuning", "unlearning"))
    assert [stage["n"] for stage in stages.values()] == [200, 180, 20]
    assert [stage["batch_size"] for stage in stages.values()] == [50] * 3  # a quarter of what the defender was given
    assert tuning["rates"] == [0.05] * 2 * 4
    assert finetuning["rates"] == pytest.approx([0.05] * 8 + [0.005] * 4)
    assert unlearning["rates"] == [0.01] * 2
    assert [stage["grad_clip"] for stage in stages.values()] == [None, None, 10.0]
    assert [stage["bn_mode"] for stage in stages.values()] == ["train", "train", "train"]
    for stage in stages.values():
        assert stage["optimizer"] == Optimizer("nesterov", 0.9, 1e-4)
        assert stage["augmentation"] == Augmentation(2)
    # Each goes on where the one before has ended.
    assert same(finetuning["before"], tuning["after"])
    assert same(unlearning["before"], finetuning["after"])


def test_ascent_raises_the_loss_of_the_isolated_samples(toy: Dataset) -> None:
    before = outcome(short(unlearning_epochs=0), toy)[1]
    after = outcome(short(unlearning_epochs=10, unlearn_lr=0.01), toy)[1]
    assert after > before + 0.1


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_without_a_rate_the_ascent_is_a_control_of_its_batch_statistics(bn_mode: str, toy: Dataset) -> None:
    before = outcome(short(unlearning_epochs=0), toy)[0]
    after = outcome(short(unlearning_epochs=5, unlearn_lr=1e-12, bn_mode=bn_mode), toy)[0]
    moved = {key for key, tensor in after.items() if not torch.allclose(tensor, before[key], rtol=0, atol=1e-6)}
    assert all("running" in key or "num_batches" in key for key in moved)
    assert bool(moved) == (bn_mode == "train")


def test_ascent_is_bounded_by_the_clipped_gradient(toy: Dataset) -> None:
    # Without a bound the loss runs away; a tight one holds the weights within steps * lr * clip / (1 - momentum).
    settings = {"unlearn_lr": 0.1, "grad_clip": 1e-3, "weight_decay": 0.0, "bn_mode": "eval"}
    before = outcome(short(unlearning_epochs=0, **settings), toy)[0]
    after = outcome(short(unlearning_epochs=30, **settings), toy)[0]
    moved = sum(float((after[key] - before[key]).double().square().sum()) for key in before) ** 0.5
    assert 0.0 < moved <= 30 * 0.1 * 1e-3 / (1 - 0.9) + 1e-6


def test_without_unlearning_the_last_stage_is_the_identity(toy: Dataset) -> None:
    one = outcome(short(unlearning_epochs=0), toy)[0]
    other = outcome(short(unlearning_epochs=0, unlearn_lr=0.5, grad_clip=0.1), toy)[0]
    assert same(one, other)


@pytest.mark.parametrize(("bn_mode", "moved"), [("train", True), ("eval", False)])
def test_unlearning_moves_running_statistics_or_leaves_them_to_the_task(
    bn_mode: str, moved: bool, toy: Dataset
) -> None:
    before = outcome(short(unlearning_epochs=0), toy)[0]
    after = outcome(short(unlearning_epochs=5, unlearn_lr=0.01, bn_mode=bn_mode), toy)[0]
    statistics = [key for key in before if "running_" in key]
    assert statistics
    assert all(torch.equal(before[key], after[key]) != moved for key in statistics)


def test_the_victim_is_not_looked_at(toy: Dataset) -> None:
    defense = short(unlearning_epochs=1)
    one, other = (
        defense.repair(bench(toy).fresh_model(seed), PoisonedData(toy.train), bench(toy)).model.state_dict()
        for seed in ("a", "b")
    )
    assert same(one, other)


def test_a_permuted_training_set_gives_the_same_model_and_permuted_findings(toy: Dataset) -> None:
    # In small batches: a step that takes the whole set hides in which order it came.
    defense, order = short(batch_size=32), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    one, other = (
        defense.repair(bench(toy).fresh_model(), PoisonedData(data), bench(toy))
        for data in (toy.train, toy.train.subset(order))
    )
    assert one.scores is not None
    assert other.scores is not None
    assert one.removed is not None
    assert other.removed is not None
    assert torch.equal(other.scores, one.scores[order])
    assert torch.equal(order[other.removed].sort().values, one.removed)
    assert same(dict(one.model.state_dict()), dict(other.model.state_dict()))


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
