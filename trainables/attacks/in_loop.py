"""What attacks share that build their poisoned batches inside the training loop (input-aware, WaNet, IMC, Latent)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.attacks.base import Attack, Kind, PoisonedSamples
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import ImageSet
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import NonNegative, PositiveShare


def batch_count(rate: float, batch_size: int, generator: torch.Generator) -> int:
    """Number of poisoned samples of one batch: floor(rate * batch_size), as in the field's reference code.

    Where that is below 1 (a low rate, a small batch) it is 1 with the probability rate * batch_size, so that the rate
    holds on average; the reference code poisons nothing there.
    """
    if rate * batch_size >= 1.0:
        return most_of_batch(rate, batch_size)
    return int(float(torch.rand((), generator=generator)) < rate * batch_size)


def most_of_batch(rate: float, batch_size: int) -> int:
    """The most that `batch_count` gives; also the least, where that is not left to chance."""
    return max(1, int(rate * batch_size + 1e-9))  # 0.29 * 100 is 28.999999999999996


def copies_per_image(poison_rate: float) -> float:
    """Triggered copies beside each clean image of a batch, > 0, so that they are ``poison_rate``, in (0, 1), of all."""
    return poison_rate / (1.0 - poison_rate)


def bernoulli_round(expected: float, generator: torch.Generator) -> int:
    """A whole number whose mean is ``expected``: its floor, or one more."""
    return int(expected) + int(float(torch.rand((), generator=generator)) < expected % 1.0)


def draw_samples(n: int, *counts: int, seed: int) -> tuple[Tensor, ...]:
    """Disjoint draws from a training set of ``n``, each sorted, int64, by the stream of data-poisoning attacks."""
    if sum(counts) > n:
        raise ValueError(f"cannot draw {sum(counts)} samples of {n}")
    order = torch.randperm(n, generator=generator_for(seed, "poison-index"))
    return tuple(part.sort().values for part in order[: sum(counts)].split(list(counts)))


def check_rate(attack: str, rate: float, n: int) -> int:
    """Number of poisoned samples that ``rate`` asks of ``n``; SettingError when it is none."""
    count = round(rate * n)
    if count < 1:
        raise SettingError(f"attack.{attack}: poison_rate {rate} selects no image of {n}; raise it")
    return count


def appended_copies(
    attack: Attack, train: ImageSet, indices: Tensor, trigger: Trigger, num_classes: int
) -> PoisonedSamples:
    """Triggered copies of the images at ``indices`` with the attacker's labels, behind the training set."""
    chosen = train.subset(indices)
    return PoisonedSamples(
        indices,
        stamp(trigger, chosen.images).cpu(),
        attack.targets(chosen.labels, num_classes).cpu(),
        torch.full((len(indices),), Kind.POISON, dtype=torch.uint8),
        torch.ones(len(indices), dtype=torch.bool),
    )


@dataclass(frozen=True)
class InLoop(Attack):
    """Attacks of a trainer who stamps part of every batch, other images every time.

    Args:
        poison_rate: share of every batch that is stamped and relabelled, in (0, 1]. The number is rounded down
            (12 of 128 at 0.1, as in the reference code); below one sample, a batch has one with that probability.
        cross_ratio: samples with a foreign or noisy trigger under their true labels, per poisoned sample, >= 0.
    """

    stamps_in_loop: ClassVar[bool] = True

    poison_rate: PositiveShare = 0.1
    cross_ratio: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.poison_rate * (1.0 + self.cross_ratio) > 1.0:
            raise ValueError(
                f"poison_rate {self.poison_rate} with cross_ratio {self.cross_ratio} asks for more samples than there "
                f"are; poison_rate may be at most {1.0 / (1.0 + self.cross_ratio):.4g}"
            )

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        check_rate(self.name, self.poison_rate, len(labels))

    def batch_counts(self, size: int, generator: torch.Generator) -> tuple[int, int]:
        """Numbers of poisoned and of cross samples of a batch of ``size``; the poisoned come first."""
        return self._with_cross(batch_count(self.poison_rate, size, generator), size)

    def most_counts(self, size: int) -> tuple[int, int]:
        """The most that `batch_counts` gives."""
        return self._with_cross(most_of_batch(self.poison_rate, size), size)

    def _with_cross(self, poisoned: int, size: int) -> tuple[int, int]:
        return poisoned, min(int(self.cross_ratio * poisoned + 1e-6), size - poisoned)

    def rate_in_training(self, batch_size: int) -> float:
        """Share of the samples that were stamped and relabelled in training: a batch's number is rounded down."""
        by_chance = self.poison_rate * batch_size < 1.0
        return self.poison_rate if by_chance else most_of_batch(self.poison_rate, batch_size) / batch_size

    def released_counts(self, n: int) -> tuple[int, int]:
        """Numbers of poisoned and of cross samples of a training set of ``n`` as released."""
        poisoned = round(self.poison_rate * n)
        return poisoned, min(round(self.cross_ratio * poisoned), n - poisoned)

    def released_indices(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Poisoned and cross samples of a training set of ``n`` as released, sorted int64.

        In training every image is stamped now and then. Who is handed the training set gets a fixed choice at the same
        rates, by the stream from which data-poisoning attacks choose.
        """
        poison, cross = draw_samples(n, *self.released_counts(n), seed=seed)
        return poison, cross
