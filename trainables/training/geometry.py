"""Random crop, rotation and flip of whole float batches, as WaNet's public code moves what it has warped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainables.machine.transfer import sent_ahead
from trainables.settings import check_settings

# What the public code asks of images of 32 pixels: a crop of 5 pixels at most, a rotation of 10 degrees at most.
CROP_PROBABILITY, CROP_SHARE = 0.8, 5 / 32
ROTATION_PROBABILITY, ROTATION_DEGREES = 0.5, 10.0

Draws = Literal["sample", "batch", "crop", "none"]
Resampling = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class Moves:
    """Moves images of a batch at random.

    Args:
        draws: crop, rotation and flip are drawn for every ``sample`` by itself, or once for the whole ``batch``;
            ``crop``: for every sample, without rotation; ``none``: nothing moves.
        resampling: of rotated images. ``nearest`` takes every pixel from one place. ``bilinear`` mixes four, and the
            blur that this leaves is larger than a displacement by fractions of a pixel: such a trigger is gone.
    """

    draws: Draws = "sample"
    resampling: Resampling = "nearest"

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
        """Moved copies; what comes in from outside is black.

        Args:
            images: float (N, 3, H, W).
            flip: whether half of the draws mirror.
            generator: on the CPU.
        """
        if self.draws == "none":
            return images
        count, size = 1 if self.draws == "batch" else len(images), images.shape[-1]

        def draw() -> Tensor:
            return torch.rand(count, generator=generator)

        padding = round(CROP_SHARE * size)
        shifts = torch.randint(-padding, padding + 1, (count, 2), generator=generator)
        shifts = shifts * (draw() < CROP_PROBABILITY)[:, None] * 2.0 / size
        angles = (draw() * 2.0 - 1.0) * math.radians(ROTATION_DEGREES) * (draw() < ROTATION_PROBABILITY)
        if self.draws == "crop":
            angles = torch.zeros(count)
        mirror = torch.where((draw() < 0.5) & torch.tensor(flip), -1.0, 1.0)
        rows = (
            torch.stack([mirror * angles.cos(), -angles.sin(), shifts[:, 0]], 1),
            torch.stack([mirror * angles.sin(), angles.cos(), shifts[:, 1]], 1),
        )
        transforms = sent_ahead(torch.stack(rows, 1), images.device).expand(len(images), -1, -1)
        grid = functional.affine_grid(transforms, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, mode=self.resampling, align_corners=False)
