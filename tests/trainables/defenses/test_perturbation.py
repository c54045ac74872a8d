"""Claims of the search for universal perturbations: from zero every time, bounded at every step, one for each round."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainables.data.images import Dataset
from trainables.defenses.perturbation import PerRound, PerturbationLoss, rounds, seek_perturbation, within
from trainables.training.loop import Counters
from trainables.training.trainer import Trainer


def seek(
    toy: Dataset,
    trainer: Trainer,
    loss: PerturbationLoss,
    *,
    model: nn.Module | None = None,
    bounded: Callable[[Tensor], Tensor] = lambda delta: delta,
    round_: int = 0,
) -> Tensor:
    """Four batches of 16 images, steps of a tenth of the slope."""
    return seek_perturbation(
        model or nn.Identity(),
        toy.train.subset(torch.arange(64)),
        trainer,
        loss=loss,
        rate=0.1,
        steps=4,
        bounded=bounded,
        batch_size=16,
        augment=False,
        round_=round_,
    )


def test_every_search_starts_from_zero_and_steps_down_once_per_batch(toy: Dataset, trainer: Trainer) -> None:
    for round_ in (0, 1):
        delta = seek(toy, trainer, lambda _images, _labels, delta: delta.sum(), round_=round_)
        torch.testing.assert_close(delta, torch.full((1, 3, 16, 16), -0.4))
    assert trainer.counters == Counters(forward_samples=128, input_backward_samples=128)


def test_bound_holds_at_every_step(toy: Dataset, trainer: Trainer) -> None:
    lowest = list[float]()

    def loss(_images: Tensor, _labels: Tensor, delta: Tensor) -> Tensor:
        lowest.append(float(delta.detach().min()))
        return delta.sum()

    delta = seek(toy, trainer, loss, bounded=lambda delta: delta.clamp(min=-0.15))
    assert [*lowest, float(delta.min())] == pytest.approx([0.0, -0.1, -0.15, -0.15, -0.15])


def test_every_round_takes_all_images_in_an_order_of_its_own(toy: Dataset, trainer: Trainer) -> None:
    orders = list[list[int]]()
    for round_ in (0, 1):
        labels_seen = list[int]()

        def loss(_images: Tensor, labels: Tensor, delta: Tensor, seen: list[int] = labels_seen) -> Tensor:
            seen.extend(labels.tolist())
            return delta.sum()

        seek(toy, trainer, loss, round_=round_)
        orders.append(labels_seen)
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(toy.train.labels[:64].tolist())


def test_search_looks_at_the_model_as_it_will_be_used_and_leaves_its_mode(toy: Dataset, trainer: Trainer) -> None:
    model, modes = nn.BatchNorm2d(3).train(), set[bool]()

    def loss(images: Tensor, _labels: Tensor, delta: Tensor) -> Tensor:
        modes.add(model.training)
        found: Tensor = model(images + delta).sum()
        return found

    seek(toy, trainer, loss, model=model)
    assert modes == {False}
    assert model.training
    assert model.num_batches_tracked is not None
    assert int(model.num_batches_tracked) == 0


def test_perturbation_is_sought_anew_at_the_first_step_of_every_round() -> None:
    sought = list[int]()

    def find(round_: int) -> Tensor:
        sought.append(round_)
        return torch.tensor(round_)

    perturbation = PerRound(3, find)
    assert [int(perturbation.next()) for _ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert sought == [0, 1, 2]
    assert rounds(7, 3) == 3


def test_only_what_is_longer_than_the_bound_is_shortened() -> None:
    delta = torch.tensor([3.0, -4.0])
    torch.testing.assert_close(within(delta, delta.norm(), 1.0), torch.tensor([0.6, -0.8]))
    assert torch.equal(within(delta, delta.norm(), 6.0), delta)
    assert torch.equal(within(0.0 * delta, torch.tensor(0.0), 1.0), 0.0 * delta), "no direction, no length, no NaN"
