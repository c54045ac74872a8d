"""Claims of SAU: its examples are shared, bounded and in the image range; its loss pushes away from shared classes."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainables.defenses.batches import shuffled
from trainables.data.images import Dataset, to_float
from trainables.defenses.base import CleanData
from trainables.defenses.sau import SharedAdversarialUnlearning, jensen_shannon, search_loss, shared_loss
from trainables.models.classifier import Classifier
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer
from trainables.victims.victim import Victim


def clean(toy: Dataset) -> CleanData:
    return CleanData(toy.train.subset(torch.arange(64)), toy.train.subset(torch.arange(64, 80)))


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def test_divergence_is_none_between_equals_and_log_2_between_opposites() -> None:
    same, opposite = logits([3.0, -1.0]), logits([-60.0, 60.0])
    assert float(jensen_shannon(same, same)) == pytest.approx(0.0, abs=1e-7)
    assert float(jensen_shannon(-opposite, opposite)) == pytest.approx(math.log(2), rel=1e-3)
    assert torch.equal(jensen_shannon(same, opposite), jensen_shannon(opposite, same))


def test_search_leaves_an_image_alone_once_it_is_shared() -> None:
    ours = logits([0.0, 2.0, 0.0], [1.0, 0.0, 0.0]).requires_grad_()
    labels = torch.tensor([0, 0])
    reference = logits([0.0, 1.0, 0.0], [1.0, 0.5, 0.0])
    (slope,) = torch.autograd.grad(search_loss(ours, reference, labels, 0.01, 1.0), ours)
    assert torch.equal(slope[0], torch.zeros(3)), "both take the first for class 1"
    assert float(slope[1].abs().sum()) > 0


def test_search_makes_small_how_far_the_outputs_are_apart() -> None:
    ours, reference = logits([1.0, 0.0, 0.0]), logits([1.0, 0.5, 0.0])
    found = search_loss(ours, reference, torch.tensor([0]), 0.0, 2.0)
    assert float(found) == pytest.approx(2.0 * float(jensen_shannon(ours, reference)))
    assert float(found) > 0


def test_search_pushes_only_the_model_that_is_right_from_the_label() -> None:
    labels = torch.tensor([0])
    ours, reference = logits([2.0, 0.0, 0.0]).requires_grad_(), logits([0.0, 2.0, 0.0]).requires_grad_()
    slopes = torch.autograd.grad(search_loss(ours, reference, labels, 1.0, 0.0), (ours, reference))
    assert float(slopes[0][0, 0]) > 0, "less of the label lowers the loss"
    assert torch.equal(slopes[1], torch.zeros(1, 3))


def test_shared_loss_counts_images_that_fool_the_reference_and_divides_by_all() -> None:
    ours = logits([0.0, 0.0], [5.0, -5.0])
    labels = torch.tensor([0, 0])
    taken_for = torch.tensor([1, 0])
    assert float(shared_loss(ours, taken_for, labels)) == pytest.approx(math.log(2) / 2)


def test_shared_loss_of_a_sure_model_is_finite() -> None:
    assert math.isfinite(float(shared_loss(logits([-200.0, 200.0]), torch.tensor([1]), torch.tensor([0]))))


@pytest.mark.parametrize("norm", [0.05, 0.3])
def test_examples_stay_in_their_bound_and_in_the_image_range(norm: float, toy: Dataset, toy_victim: Victim) -> None:
    data = clean(toy).train
    images, defense = to_float(data.images), SharedAdversarialUnlearning(norm=norm)
    found = defense.shared_examples(toy_victim.model, toy_victim.model, images, data.labels, Counters())
    assert float((found - images).abs().max()) <= norm + 1e-6
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0


def test_search_starts_at_the_bound_on_every_pixel(toy: Dataset, toy_victim: Victim) -> None:
    data, defense = clean(toy).train, SharedAdversarialUnlearning(attack_steps=0, norm=0.2)
    images = to_float(data.images)
    found = defense.shared_examples(toy_victim.model, toy_victim.model, images, data.labels, Counters())
    assert torch.equal(found, (images + 0.2).clamp(max=1.0))


def test_a_step_of_the_search_draws_the_outputs_together(toy: Dataset, toy_victim: Victim, learned: Classifier) -> None:
    data, apart = clean(toy).train, list[float]()
    for steps in (0, 1):
        defense = SharedAdversarialUnlearning(attack_steps=steps, attack_lr=0.002, beta1=0.0)
        images = to_float(data.images)
        found = defense.shared_examples(toy_victim.model, learned, images, data.labels, Counters())
        with torch.no_grad():
            apart.append(float(jensen_shannon(toy_victim.model(found), learned(found)).mean()))
    assert apart[1] < apart[0]


def test_model_leaves_the_class_that_what_it_was_takes_an_example_for(
    toy: Dataset, toy_victim: Victim, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, search = list[tuple[Classifier, Classifier, Tensor]](), SharedAdversarialUnlearning.shared_examples

    def spy(self: SharedAdversarialUnlearning, model: Classifier, reference: Classifier, *arguments: Any) -> Tensor:
        found = search(self, model, reference, *arguments)
        seen.append((copy.deepcopy(model), copy.deepcopy(reference), found))
        return found

    monkeypatch.setattr(SharedAdversarialUnlearning, "shared_examples", spy)
    defense = SharedAdversarialUnlearning(steps=2, batch_size=16, lr=0.01, shared_weight=3.0, augment=False)
    data = clean(toy)
    history = defense.repair(copy.deepcopy(toy_victim.model), data, trainer).history
    victim, moved, losses = toy_victim.model.state_dict(), list[bool](), list[float]()
    batches = shuffled(data.train, trainer)
    for step, (model, reference, found) in enumerate(seen):
        batch = batches.subset(torch.arange(16 * step, 16 * step + 16))
        labels, images = batch.labels, to_float(batch.images)
        assert all(torch.equal(value, victim[key]) for key, value in reference.state_dict().items())
        with torch.no_grad():
            taken_for, ours = reference(found).argmax(1), model(found)
            moved.append(bool((ours.argmax(1) != taken_for).any()))
            shared = float(shared_loss(ours, taken_for, labels))
            losses.append(float(functional.cross_entropy(model(images), labels)) + 3.0 * shared)
    assert moved == [False, True]
    assert history.loss == pytest.approx(losses, rel=1e-4)


def test_weights_take_steps_of_adam(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    defense = SharedAdversarialUnlearning(steps=1, lr=1e-3)
    found = defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model
    before = dict(toy_victim.model.named_parameters())
    moves = torch.cat([(after - before[name]).detach().abs().flatten() for name, after in found.named_parameters()])
    # Its first step is as long for every weight, whatever the gradient.
    assert [float(moves.median()), float(moves.max())] == pytest.approx([1e-3, 1e-3], rel=0.01)


def test_examples_of_the_search_are_shared_more_often_than_its_start(
    toy: Dataset, toy_victim: Victim, learned: Classifier
) -> None:
    """Between a victim and a clean model, so that sharing is no matter of course."""
    data, shares = clean(toy).train, []
    for steps in (0, 5):
        defense = SharedAdversarialUnlearning(attack_steps=steps, norm=0.3, attack_lr=0.1)
        images = to_float(data.images)
        found = defense.shared_examples(toy_victim.model, learned, images, data.labels, Counters())
        with torch.no_grad():
            one, other = toy_victim.model(found).argmax(1), learned(found).argmax(1)
        shares.append(float(((one == other) & (one != data.labels)).float().mean()))
    assert shares[1] > shares[0]


def test_without_the_shared_loss_it_trains_on_clean_images_alone(
    toy: Dataset, toy_victim: Victim, trainer: Trainer
) -> None:
    """So the perturbation's size cannot matter."""
    found = []
    for norm in (0.1, 0.4):
        defense = SharedAdversarialUnlearning(norm=norm, shared_weight=0.0, steps=4, batch_size=16, lr=1e-3)
        found.append(defense.repair(copy.deepcopy(toy_victim.model), clean(toy), trainer).model.state_dict())
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_the_model_leaves_the_classes_it_shared(toy: Dataset, toy_victim: Victim, trainer: Trainer) -> None:
    data = clean(toy)
    defense = SharedAdversarialUnlearning(steps=20, batch_size=16, lr=1e-3)
    images, labels = to_float(data.train.images), data.train.labels
    found = defense.shared_examples(toy_victim.model, toy_victim.model, images, labels, Counters())
    model = defense.repair(copy.deepcopy(toy_victim.model), data, trainer).model
    with torch.no_grad():
        taken_for = toy_victim.model(found).argmax(1)
        before, after = (shared_loss(m(found), taken_for, labels) for m in (toy_victim.model, model))
    assert float(after) < float(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": 0.0}, "norm must be in"),
        ({"attack_lr": 0.0}, "attack_lr must be > 0"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"beta1": -1.0}, "beta1 must be >= 0"),
        ({"shared_weight": -1.0}, "shared_weight must be >= 0"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedAdversarialUnlearning(**settings)
