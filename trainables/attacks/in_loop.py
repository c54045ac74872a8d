"""What attacks share that build their poison inside the training loop: how much of a batch, and what they release."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.registry import SettingError
from trainables.seeding import generator_for


def batch_count(rate: float, batch_size: int, generator: torch.Generator) -> int:
    """Number of poisoned samples of one batch: floor(rate * batch_size), as in the field's reference code.

    Where that is below 1 (a low rate, a small batch) it is 1 with the probability rate * batch_size, so that the rate
    holds on average; the reference code poisons nothing there.
    """
    expected = rate * batch_size
    if expected >= 1.0:
        return int(expected + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return int(float(torch.rand((), generator=generator)) < expected)


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
