"""BadNets (Gu et al. 2017, arXiv:1708.06733): a small patch in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.attacks.patches import Position, check_fits, corner
from trainables.seeding import generator_for
from trainables.settings import Count, CountOrZero, PositiveShare

# BackdoorBench's patch: its side, of images of so many pixels.
SIZE, OF = 3, 32


@register("badnets")
@dataclass(frozen=True)
class BadNets(DataPoisoning):
    """Stamp a square patch on poisoned images and relabel them.

    Unlike Blended, pixels outside the patch stay exactly as they are. The default, a white 3x3 square in the
    bottom-right corner, is BackdoorBench's; the paper shows other shapes. BackdoorBench draws it in a picture of 32
    pixels and enlarges that with the images: at 64 pixels the square is 6x6.

    Args:
        size: side of the patch in pixels, >= 1; None: 3 of 32 pixels, more on larger images and no less on smaller.
        position: a corner, ``centre``, or "ROW,COLUMN" of the patch's top-left pixel.
        margin: pixels between the patch and the border, for corners.
        pattern: ``white``, ``checkerboard`` (white and black), or ``random`` (a seeded colour per pixel).
        alpha: opacity of the patch, in (0, 1].
    """

    size: Count | None = None
    position: Position = "bottom_right"
    margin: CountOrZero = 0
    pattern: Literal["white", "checkerboard", "random"] = "white"
    alpha: PositiveShare = 1.0

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size:
            check_fits(self.name, self.side(image_size), self.position, self.margin, image_size)

    def corner(self, image_size: int) -> tuple[int, int]:
        """Row and column of the patch's top-left pixel."""
        return corner(self.side(image_size), self.position, self.margin, image_size)

    def side(self, image_size: int) -> int:
        """Side of the patch in pixels."""
        return max(SIZE, round(SIZE * image_size / OF)) if self.size is None else self.size

    def at(self, image_size: int) -> BadNets:
        return dataclasses.replace(self, size=self.side(image_size))

    def make_trigger(self, image_size: int, seed: int) -> OverlayTrigger:
        (row, column), size = self.corner(image_size), self.side(image_size)
        rows, columns = slice(row, row + size), slice(column, column + size)
        weight, pattern = torch.zeros(1, image_size, image_size), torch.zeros(3, image_size, image_size)
        weight[:, rows, columns] = self.alpha
        pattern[:, rows, columns] = self._patch(size, seed)
        return OverlayTrigger(image_size, weight, pattern)

    def _patch(self, size: int, seed: int) -> Tensor:
        shape = (3, size, size)
        match self.pattern:
            case "white":
                return torch.ones(shape)
            case "checkerboard":
                index = torch.arange(size)
                return ((index[:, None] + index[None, :] + 1) % 2).float().expand(shape)
            case "random":
                return torch.randint(0, 256, shape, generator=generator_for(seed, "patch")).float() / 255.0
