"""BadNets (Gu et al. 2017, arXiv:1708.06733): a small patch in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, OverlayTrigger, register
from trainables.attacks.patches import Position, check_fits, corner
from trainables.seeding import generator_for
from trainables.settings import Count, CountOrZero, PositiveShare


@register("badnets")
@dataclass(frozen=True)
class BadNets(DataPoisoning):
    """Stamp a square patch on poisoned images and relabel them.

    Unlike Blended, pixels outside the patch stay exactly as they are. The default, a white 3x3 square in the
    bottom-right corner, is BackdoorBench's; the paper shows other shapes.

    Args:
        size: side of the patch in pixels, >= 1.
        position: a corner, ``centre``, or "ROW,COLUMN" of the patch's top-left pixel.
        margin: pixels between the patch and the border, for corners.
        pattern: ``white``, ``checkerboard`` (white and black), or ``random`` (a seeded colour per pixel).
        alpha: opacity of the patch, in (0, 1].
    """

    size: Count = 3
    position: Position = "bottom_right"
    margin: CountOrZero = 0
    pattern: Literal["white", "checkerboard", "random"] = "white"
    alpha: PositiveShare = 1.0

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size:
            check_fits(self.name, self.size, self.position, self.margin, image_size)

    def corner(self, image_size: int) -> tuple[int, int]:
        """Row and column of the patch's top-left pixel."""
        return corner(self.size, self.position, self.margin, image_size)

    def make_trigger(self, image_size: int, seed: int) -> OverlayTrigger:
        row, column = self.corner(image_size)
        rows, columns = slice(row, row + self.size), slice(column, column + self.size)
        weight, pattern = torch.zeros(1, image_size, image_size), torch.zeros(3, image_size, image_size)
        weight[:, rows, columns] = self.alpha
        pattern[:, rows, columns] = self._patch(seed)
        return OverlayTrigger(image_size, weight, pattern)

    def _patch(self, seed: int) -> Tensor:
        shape = (3, self.size, self.size)
        match self.pattern:
            case "white":
                return torch.ones(shape)
            case "checkerboard":
                index = torch.arange(self.size)
                return ((index[:, None] + index[None, :] + 1) % 2).float().expand(shape)
            case "random":
                return torch.randint(0, 256, shape, generator=generator_for(seed, "patch")).float() / 255.0
