"""What an attack did to the training set: samples in place of others, and copies behind them."""

import torch

from trainables.attacks.base import Kind, PoisonedSamples
from trainables.data.images import Dataset, ImageSet


def samples(data: ImageSet, indices: list[int], appended: torch.Tensor | None) -> PoisonedSamples:
    at = torch.tensor(indices)
    kinds = torch.tensor([Kind.POISON, Kind.CROSS, Kind.POISON], dtype=torch.uint8)
    return PoisonedSamples(at, 255 - data.images[at], (data.labels[at] + 1) % 10, kinds, appended)


def test_samples_replace_those_at_their_indices(toy: Dataset) -> None:
    made = samples(toy.train, [4, 9, 7], None)
    released = made.apply(toy.train)
    assert len(released) == len(toy.train)
    assert torch.equal(released.images[[4, 9, 7]], made.images)
    assert made.kinds_of(200).nonzero()[:, 0].tolist() == [4, 7, 9]


def test_appended_copies_follow_the_set_and_leave_their_originals_alone(toy: Dataset) -> None:
    made = samples(toy.train, [4, 9, 7], torch.tensor([True, False, True]))
    released, kinds = made.apply(toy.train), made.kinds_of(200)
    assert len(released) == len(kinds) == 202
    assert torch.equal(released.images[200:], made.images[[0, 2]])
    assert torch.equal(released.labels[200:], made.labels[[0, 2]])
    assert torch.equal(released.images[[4, 7]], toy.train.images[[4, 7]])
    assert torch.equal(released.images[9], made.images[1])
    assert kinds.nonzero()[:, 0].tolist() == [9, 200, 201]
    assert kinds[kinds > 0].tolist() == [Kind.CROSS, Kind.POISON, Kind.POISON]
