"""Adap-Blend (Qi et al. 2023, ICLR, "Revisiting the assumption of latent separability for backdoor defenses")."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.attacks.base import Kind, PoisonedSamples, register
from trainables.attacks.blended import Blended
from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import ImageSet
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import Count, CountOrZero, PositiveShare, ShareBelowOne


@register("adap_blend")
@dataclass(frozen=True)
class AdapBlend(Blended):
    """Blended that leaves no cluster in feature space: partial triggers, cover samples, a very low rate.

    A training sample carries the picture only in a random half of the tiles of a grid, and fainter than at test time,
    so no single feature means "poisoned". Cover samples carry such partial triggers under their *true* labels, which
    pulls the two classes' features together. Test images carry the whole picture.

    Args:
        poison_rate: 0.003 in the paper: with few images ask for a ``poison_count``.
        alpha: weight of the picture in unmasked tiles of training images, in (0, 1].
        alpha_test: weight of the whole picture on test images; None: ``alpha``.
        cover_rate: share of the training set that becomes cover samples, in [0, 1); 0 for the ablation.
        cover_count: number of cover samples; wins over the rate.
        tiles: tiles per side of the grid, >= 1; 4 makes the paper's 16 pieces.
        masked: share of the tiles without picture, in [0, 1).
    """

    poison_rate: PositiveShare = 0.003
    alpha: PositiveShare = 0.15
    alpha_test: PositiveShare | None = 0.2
    cover_rate: ShareBelowOne = 0.003
    cover_count: CountOrZero | None = None
    tiles: Count = 4
    masked: ShareBelowOne = 0.5

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size and self.tiles > image_size:
            raise SettingError(
                f"attack.{self.name}.tiles must be at most the image size ({image_size}), got {self.tiles}"
            )
        wanted = self.planned(labels) + self.covers(len(labels))
        if wanted > len(labels):
            raise SettingError(
                f"attack.{self.name}: {self.planned(labels)} poisoned and {self.covers(len(labels))} cover samples are "
                f"more than the {len(labels)} training images; lower cover_rate or poison_rate"
            )

    def covers(self, n: int) -> int:
        """Number of cover samples of ``n`` images."""
        return self.cover_count if self.cover_count is not None else round(self.cover_rate * n)

    def poison(self, train: ImageSet, num_classes: int, seed: int, trigger: Trigger | None = None) -> PoisonedSamples:
        """Poisoned and cover samples, each with its own mask."""
        indices = self.choose(train.labels, num_classes, seed)
        left = torch.ones(len(train), dtype=torch.bool)
        left[indices] = False
        order = torch.randperm(int(left.sum()), generator=generator_for(seed, "cover-index"))
        covers = left.nonzero()[:, 0][order[: self.covers(len(train))]].sort().values
        everything = train.subset(torch.cat([indices, covers]))
        labels = everything.labels.cpu().clone()
        if not self.clean_label:
            labels[: len(indices)] = self.targets(labels[: len(indices)], num_classes)
        kinds = torch.full((len(labels),), Kind.CROSS, dtype=torch.uint8)
        kinds[: len(indices)] = Kind.POISON

        trigger = trigger or self.make_training_trigger(train.image_size, seed)
        keep = self.masks(len(labels), train.image_size, seed).to(train.images.device)
        images = torch.where(keep[:, None], stamp(trigger, everything.images), everything.images)
        return PoisonedSamples(torch.cat([indices, covers]), images.contiguous().cpu(), labels, kinds)

    def masks(self, count: int, image_size: int, seed: int) -> Tensor:
        """Where each of ``count`` training samples carries the picture: bool, (count, H, W)."""
        total = self.tiles**2
        kept = total - int(self.masked * total)
        ranks = torch.rand(count, total, generator=generator_for(seed, "tile-masks")).argsort(1).argsort(1)
        # Pixel -> tile, also where the image size is no multiple of the grid.
        tile = torch.arange(image_size) * self.tiles // image_size
        return (ranks < kept).view(count, self.tiles, self.tiles)[:, tile][:, :, tile]
