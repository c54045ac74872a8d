"""Claims of the reconstructive neuron pruning defense."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from superft.testing import toy as shipped
from superft.testing.claims import assert_identity
from superft.testing.defense_subject import Subject, same
from tests.trainables.defenses.batches import shuffled
from tests.trainables.defenses.pruned import assert_only_pruned_gammas_changed
from trainables.data.images import Dataset, ImageSet, to_float
from trainables.defenses.base import CleanData, Repair
from trainables.defenses.pruning import MaskedModel
from trainables.defenses.rnp import Ascent, ReconstructiveNeuronPruning
from trainables.models.classifier import Classifier
from trainables.training.predict import predict
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim

SMALL = shipped.SMALL["rnp"]


class Lookup(nn.Module):
    """Always predicts ``guess``."""

    guess = 0

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.full((len(images),), self.guess), 4).float()


def test_ascent_ends_after_the_first_pass_at_or_below_the_goal() -> None:
    model, labels = Lookup(), torch.tensor([0, 0, 1, 2])
    ascent = Ascent(steps_per_pass=2, goal=0.25)
    answers = []
    for step, guess in enumerate((0, 0, 3, 0, 1, 2)):  # passes of accuracy 0.5, 0.25 and 0.25
        model.guess = guess
        ascent(model, torch.zeros(4, 3, 8, 8), labels)
        answers.append(ascent.reached(step))
    assert ascent.accuracies == [0.5, 0.25, 0.25]
    assert answers == [False, False, False, True, False, True]


def test_ascent_is_minus_the_cross_entropy() -> None:
    model, labels = Lookup(), torch.tensor([0, 0, 1, 2])
    images = torch.zeros(4, 3, 8, 8)
    expected = -torch.nn.functional.cross_entropy(model(images), labels)
    assert torch.equal(Ascent(1, 0.2)(model, images, labels), expected)


def repair(toy: Dataset, victim: Classifier, trainer: Trainer, **settings: Any) -> tuple[Classifier, Repair]:
    model = copy.deepcopy(victim)
    data = CleanData(toy.train.subset(torch.arange(40)), toy.train.subset(torch.arange(100, 200)))
    return model, ReconstructiveNeuronPruning(**{**SMALL, **settings}).repair(model, data, trainer)


@pytest.mark.parametrize(("num_classes", "passes"), [(10, 6), (2, 1)])
def test_goal_rises_with_chance(
    num_classes: int, passes: int, toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    # Half of the labels are wrong and the rate is so small that this stays so: an accuracy above 1.5 / 10, so that all
    # passes are made, and below 1.5 / 2.
    data = toy.train.subset(torch.arange(40))
    predicted = predict(copy.deepcopy(learned), data.images, precision="float32")
    clean = ImageSet(data.images, (predicted + torch.arange(40) % 2) % 10)
    trainer.num_classes = num_classes
    settings = {"clean_threshold": 0.01, "unlearn_lr": 1e-9, "unlearn_steps": 24, "augment": False, "bn_mode": "eval"}
    defense = ReconstructiveNeuronPruning(**SMALL | settings)
    found = defense.repair(copy.deepcopy(learned), CleanData(clean, clean), trainer)
    assert found.notes["unlearn_passes"] == passes
    assert found.notes["unlearned_accuracy"] == pytest.approx(0.5)
    assert len(found.history.loss) == 4 * passes + SMALL["recover_steps"]  # batches of a quarter


def test_unlearning_moves_weights_down_the_accuracy_and_is_clipped_after_the_gradient(
    toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    # Clipped before the backward pass, a gradient is not clipped at all: such an ascent leaves the finite numbers.
    settings = {"unlearn_steps": 80, "unlearn_lr": 0.5, "clean_threshold": 1e-9, "recover_steps": 0}
    trainer.num_classes = 10**6  # the goal out of reach
    _, clipped = repair(toy, learned, trainer, **settings, grad_clip=1e-6, weight_decay=0.0)
    losses = clipped.history.loss
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4  # of a pass
    assert abs(last - first) < 1.0
    _, free = repair(toy, learned, trainer, **settings | {"unlearn_steps": 6}, grad_clip=None)
    assert free.history.loss[-1] < last - 1.0


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_pruned_network_shares_all_other_weights_with_the_victim(
    bn_mode: str, toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, found = repair(toy, learned, trainer, threshold=0.5, acc_tol=None, bn_mode=bn_mode)
    assert_only_pruned_gammas_changed(model, learned, found)
    assert (found.notes["statistics_moved"] > 0) == (bn_mode == "train")


def test_recovery_touches_masks_only(
    toy: Dataset, learned: Classifier, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    original = Trainer.fit

    def spy(self: Trainer, model: nn.Module, data: Any, *, purpose: str = "fit", **settings: Any) -> Any:
        before = copy.deepcopy(dict(model.state_dict()))
        history = original(self, model, data, purpose=purpose, **settings)
        seen.append((before, copy.deepcopy(dict(model.state_dict()))))
        return history

    monkeypatch.setattr(Trainer, "fit", spy)
    repair(toy, learned, trainer, bn_mode="eval")
    (before, unlearned), (recover_before, recovered) = seen
    assert not torch.equal(before["stages.1.0.conv1.weight"], unlearned["stages.1.0.conv1.weight"])
    changed = {key for key in recovered if not torch.equal(recovered[key], recover_before[key])}
    assert changed == {"mask"}
    assert torch.equal(recover_before["mask"], torch.ones_like(recover_before["mask"]))
    assert 0.0 <= float(recovered["mask"].min()) < 1.0
    assert float(recovered["mask"].max()) <= 1.0
    for key, tensor in unlearned.items():  # the masks are learned on the model that has forgotten
        assert torch.equal(recover_before[f"model.{key}"], tensor)


def test_a_recovery_step_goes_down_the_slope_of_the_masks_without_decay(
    toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    masked = MaskedModel(copy.deepcopy(learned), batch_statistics=False).eval()
    data = shuffled(toy.train.subset(torch.arange(40)), trainer, "recover").subset(torch.arange(10))
    loss = functional.cross_entropy(masked(to_float(data.images)), data.labels)
    (slope,) = torch.autograd.grad(loss, masked.mask)
    settings = {"unlearn_steps": 0, "recover_steps": 1, "alpha": 0.2, "recover_lr": 5.0, "batch_size": 10}
    _, found = repair(toy, learned, trainer, **settings, augment=False, bn_mode="eval")
    wanted = (1.0 - 0.2 * 5.0 * slope).clamp(0.0, 1.0)
    assert found.notes["mask_mean"] == pytest.approx(float(wanted.mean()), abs=1e-5)
    assert found.notes["mask_min"] == pytest.approx(float(wanted.min()), abs=1e-4)


@pytest.mark.parametrize("settings", [{"recover_steps": 0}, {"recover_lr": 1e-9}])
def test_masks_that_did_not_move_leave_the_victim_as_it_was(
    settings: dict[str, Any], toy: Dataset, learned: Classifier, trainer: Trainer
) -> None:
    model, found = repair(toy, learned, trainer, **settings)
    assert same(dict(model.state_dict()), dict(learned.state_dict()))
    assert found.status == "abstained"


def test_no_steps_are_the_identity(toy: Dataset, toy_victim: Victim) -> None:
    assert_identity(Subject("rnp", toy_victim, toy), unlearn_steps=0, recover_steps=0)


def test_rate_of_the_ascent_falls_halfway() -> None:
    rate = ReconstructiveNeuronPruning().unlearn_lr_at  # 20 epochs of 4 steps, falling after 10
    assert [rate(step) for step in (0, 39, 40, 79)] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_cost_is_at_most_what_was_planned(toy: Dataset, toy_victim: Victim) -> None:
    subject = Subject("rnp", toy_victim, toy)
    run, _ = subject.run(subject.create(clean_threshold=0.99, unlearn_steps=12))  # reached after one pass
    assert isinstance(run.assets, CleanData)
    planned = subject.create(unlearn_steps=12).plan(len(run.assets.train), len(run.assets.validation))
    assert run.trainer.counters.steps < planned.steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlearn_lr": 0.0}, "unlearn_lr must be > 0"),
        ({"recover_lr": math.nan}, "recover_lr must be > 0"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"unlearn_steps": -1}, "unlearn_steps must be >= 0"),
        ({"recover_steps": -1}, "recover_steps must be >= 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"clean_threshold": 0.0}, "clean_threshold must be in"),
        ({"clean_threshold": 1.0}, "clean_threshold must be in"),
        ({"grad_clip": 0.0}, "grad_clip must be > 0"),
        ({"bn_mode": "frozen"}, "bn_mode must be"),
        ({"threshold": -0.1}, "threshold must be in"),
        ({"acc_tol": 2.0}, "acc_tol must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructiveNeuronPruning(**settings)
