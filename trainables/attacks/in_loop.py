"""What attacks share that build their poisoned batches inside the training loop (input-aware, WaNet)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.attacks.base import Attack
from trainables.registry import SettingError
from trainables.seeding import generator_for


@dataclass(frozen=True)
class InLoop(Attack):
    """Attacks of a trainer who stamps part of every batch, other images every time.

    Args:
        poison_rate: share of every batch that is stamped and relabelled, in (0, 1]. The number is rounded down
            (12 of 128 at 0.1, as in the reference code); below one sample, a batch has one with that probability.
        cross_ratio: samples with a foreign or noisy trigger under their true labels, per poisoned sample, >= 0.
    """

    poison_rate: float = 0.1
    cross_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.poison_rate <= 1.0:
            raise ValueError(f"poison_rate must be in (0, 1], got {self.poison_rate}")
        if not self.cross_ratio >= 0.0:
            raise ValueError(f"cross_ratio must be >= 0, got {self.cross_ratio}")
        if self.poison_rate * (1.0 + self.cross_ratio) > 1.0:
            raise ValueError(
                f"poison_rate {self.poison_rate} with cross_ratio {self.cross_ratio} asks for more samples than there "
                f"are; poison_rate may be at most {1.0 / (1.0 + self.cross_ratio):.4g}"
            )

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if round(self.poison_rate * len(labels)) < 1:
            raise SettingError(
                f"attack.{self.name}: poison_rate {self.poison_rate} selects no image of {len(labels)}; raise it"
            )

    def batch_counts(self, size: int, generator: torch.Generator) -> tuple[int, int]:
        """Numbers of poisoned and of cross samples of a batch of ``size``; the poisoned come first."""
        # The millionth: 0.3 * 10 is 2.9999999999999996.
        poisoned = int(self.poison_rate * size + 1e-6)
        if poisoned == 0:
            poisoned = int(float(torch.rand((), generator=generator)) < self.poison_rate * size)
        return poisoned, min(int(self.cross_ratio * poisoned + 1e-6), size - poisoned)

    def released_indices(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Poisoned and cross samples of a training set of ``n`` as released, sorted int64.

        In training every image is stamped now and then. Who is handed the training set gets a fixed choice at the same
        rates, by the stream from which data-poisoning attacks choose.
        """
        poisoned = round(self.poison_rate * n)
        cross = min(round(self.cross_ratio * poisoned), n - poisoned)
        order = torch.randperm(n, generator=generator_for(seed, "poison-index"))
        return order[:poisoned].sort().values, order[poisoned : poisoned + cross].sort().values
