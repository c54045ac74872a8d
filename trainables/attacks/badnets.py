"""BadNets (Gu et al. 2017, arXiv:1708.06733): a small patch in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, OverlayTrigger, register
from trainables.registry import SettingError
from trainables.seeding import generator_for

POSITIONS = ("bottom_right", "bottom_left", "top_right", "top_left", "centre")


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

    size: int = 3
    position: str = "bottom_right"
    margin: int = 0
    pattern: Literal["white", "checkerboard", "random"] = "white"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size}")
        if self.margin < 0:
            raise ValueError(f"margin must be >= 0, got {self.margin}")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha must be in (0, 1], got {self.alpha}")
        if self.pattern not in ("white", "checkerboard", "random"):
            raise ValueError(f"pattern must be white, checkerboard or random, got {self.pattern!r}")
        if self.position not in POSITIONS:
            self._coordinates()

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size:
            row, column = self.corner(image_size)
            if min(row, column) < 0 or max(row, column) + self.size > image_size:
                raise SettingError(
                    f"attack.{self.name}: a patch of size {self.size} at {self.position} with margin {self.margin} "
                    f"does not fit an image of {image_size} pixels"
                )

    def corner(self, image_size: int) -> tuple[int, int]:
        """Row and column of the patch's top-left pixel."""
        if self.position not in POSITIONS:
            return self._coordinates()
        far = image_size - self.size - self.margin
        if self.position == "centre":
            middle = (image_size - self.size) // 2
            return middle, middle
        vertical, horizontal = self.position.split("_")
        return far if vertical == "bottom" else self.margin, far if horizontal == "right" else self.margin

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

    def _coordinates(self) -> tuple[int, int]:
        try:
            row, column = (int(part) for part in self.position.split(","))
        except ValueError:
            raise ValueError(
                f"position must be one of {', '.join(POSITIONS)} or 'ROW,COLUMN', got {self.position!r}"
            ) from None
        return row, column
