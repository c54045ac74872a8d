"""Triggers that a defender draws himself, of several kinds; nothing in them comes from an attack under study."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainables.data.images import quantise, to_float


@dataclass(frozen=True)
class OwnTrigger:
    """x' = (1 - weight) x + weight pattern + shift, cut to [0, 1]; all three are (3, H, W).

    Args:
        pattern: picture in [0, 1].
        weight: its opacity, in [0, 1].
        shift: what is added besides, in grey levels of [-1, 1].
    """

    pattern: Tensor
    weight: Tensor
    shift: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Triggered copy of float images in [0, 1], (N, 3, H, W)."""
        weight, pattern, shift = (part.to(images) for part in (self.weight, self.pattern, self.shift))
        return (torch.lerp(images, pattern.expand_as(images), weight.expand_as(images)) + shift).clamp(0.0, 1.0)

    def stamp(self, images: Tensor) -> Tensor:
        """Triggered and quantised copy of uint8 images, (N, 3, H, W)."""
        return quantise(self(to_float(images))).contiguous()


def patch(size: int, generator: torch.Generator) -> OwnTrigger:
    """A coloured square of 3 pixels (a tenth of larger images) somewhere in the image."""
    side = max(3, size // 10)
    row, column = (int(torch.randint(0, size - side + 1, (), generator=generator)) for _ in range(2))
    weight, pattern = torch.zeros(3, size, size), torch.zeros(3, size, size)
    weight[:, row : row + side, column : column + side] = 1.0
    # Black and white alone, so that it differs from the image under it wherever it lies.
    pattern[:, row : row + side, column : column + side] = torch.randint(
        0, 2, (3, side, side), generator=generator
    ).float()
    return OwnTrigger(pattern, weight, torch.zeros(3, size, size))


def noise(size: int, generator: torch.Generator) -> OwnTrigger:
    """A picture of uniform noise, mixed in at 0.15."""
    pattern = torch.rand(3, size, size, generator=generator)
    return OwnTrigger(pattern, torch.full_like(pattern, 0.15), torch.zeros_like(pattern))


def waves(size: int, generator: torch.Generator) -> OwnTrigger:
    """A smooth wave of one to three periods across the image, added at an amplitude of 0.1 with a phase per channel."""
    across, down = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(2))
    place = torch.arange(size) / size
    angle = 2 * math.pi * (across * place[None, :] + down * place[:, None])
    phase = 2 * math.pi * torch.rand(3, 1, 1, generator=generator)
    nothing = torch.zeros(3, size, size)
    return OwnTrigger(nothing, nothing, 0.1 * torch.sin(angle + phase))


def run(size: int, generator: torch.Generator) -> OwnTrigger:
    """A twentieth of all values in a row, each black or white: the primitive of Mithridates (arXiv:2302.04977)."""
    values = 3 * size * size
    length = int(0.05 * values)
    start = int(torch.randint(0, values - length + 1, (), generator=generator))
    weight, pattern = torch.zeros(values), torch.zeros(values)
    weight[start : start + length] = 1.0
    pattern[start : start + length] = torch.randint(0, 2, (length,), generator=generator).float()
    shape = (3, size, size)
    return OwnTrigger(pattern.view(shape), weight.view(shape), torch.zeros(shape))


# Name -> (side of the images in pixels, random numbers) -> trigger.
KINDS: dict[str, Callable[[int, torch.Generator], OwnTrigger]] = {
    "patch": patch,
    "noise": noise,
    "waves": waves,
    "run": run,
}
