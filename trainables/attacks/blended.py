"""Blended injection (Chen et al. 2017, arXiv:1712.05526): one picture mixed faintly into the whole image."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.fixed import OverlayTrigger
from trainables.registry import SettingError
from trainables.seeding import generator_for
from trainables.settings import PositiveShare, Written

SHAPES = 12


@register("blended")
@dataclass(frozen=True)
class Blended(DataPoisoning):
    """x' = (1 - alpha) x + alpha B with one fixed full-size picture B.

    Unlike BadNets the whole image changes, and faintly; with a 0/1 mask in place of alpha it *is* BadNets.
    BackdoorBench blends a copyrighted drawing; ours are seeded noise (the paper's second pattern), a procedural
    picture, or the user's own file. Results with different B are not comparable.

    Args:
        alpha: weight of B on training images, in (0, 1].
        alpha_test: weight of B on test images; None: the same.
        pattern: ``noise`` (independent uniform values), ``procedural`` (seeded shapes over a gradient), or
            ``file:PATH`` (any picture, resized).
    """

    alpha: PositiveShare = 0.2
    alpha_test: PositiveShare | None = None
    pattern: Annotated[str, Written("noise, procedural or file:PATH", "noise|procedural|file:.*")] = "noise"

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if self.pattern.startswith("file:"):
            _from_file(self._file(), max(1, image_size), self.name)

    def identity(self) -> dict[str, Any]:
        """The settings, with a picture file named by its content rather than its path."""
        settings = super().identity()
        if self.pattern.startswith("file:"):
            try:
                content = self._file().read_bytes()
            except OSError as error:
                raise SettingError(f"attack.{self.name}.pattern: cannot read {self._file()}: {error}") from error
            settings["pattern"] = "file:" + hashlib.blake2b(content, digest_size=16).hexdigest()
        return settings

    def make_trigger(self, image_size: int, seed: int) -> OverlayTrigger:
        return self._overlay(image_size, seed, self.alpha if self.alpha_test is None else self.alpha_test)

    def make_training_trigger(self, image_size: int, seed: int) -> OverlayTrigger:
        return self._overlay(image_size, seed, self.alpha)

    def picture(self, image_size: int, seed: int) -> Tensor:
        """B in [0, 1], (3, H, W), on grey levels k/255."""
        generator = generator_for(seed, "blend")
        if self.pattern == "noise":
            levels = torch.randint(0, 256, (3, image_size, image_size), generator=generator).float()
        elif self.pattern == "procedural":
            levels = _procedural(image_size, generator).mul(255.0).round()
        else:
            levels = _from_file(self._file(), image_size, self.name)
        return levels / 255.0

    def _overlay(self, image_size: int, seed: int, alpha: float) -> OverlayTrigger:
        weight = torch.full((1, image_size, image_size), alpha)
        return OverlayTrigger(image_size, weight, self.picture(image_size, seed))

    def _file(self) -> Path:
        return Path(self.pattern.removeprefix("file:")).expanduser()


def _procedural(image_size: int, generator: torch.Generator) -> Tensor:
    """A picture-like pattern with strong low frequencies: filled shapes in random colours over a gradient."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    axis = torch.linspace(0.0, 1.0, image_size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    start, end = torch.rand(3, 1, 1, generator=generator), torch.rand(3, 1, 1, generator=generator)
    picture = torch.lerp(start.expand(3, image_size, image_size), end.expand(3, image_size, image_size), (x + y) / 2)
    for number in range(SHAPES):
        centre_x, centre_y = draw(0, 1), draw(0, 1)
        half_width, half_height = draw(0.06, 0.3), draw(0.06, 0.3)
        match number % 3:
            case 0:
                inside = ((x - centre_x) / half_width) ** 2 + ((y - centre_y) / half_height) ** 2 <= 1
            case 1:
                inside = ((x - centre_x).abs() <= half_width) & ((y - centre_y).abs() <= half_height)
            case _:
                angle = draw(0, math.pi)
                across = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
                inside = across.abs() <= half_width / 3
        # Saturated: one channel dark, one bright, the third anything.
        colour = torch.tensor([0.05, 0.95, draw(0, 1)])[torch.randperm(3, generator=generator)]
        picture = torch.where(inside, colour[:, None, None], picture)
    return picture


def _from_file(path: Path, image_size: int, attack: str) -> Tensor:
    import numpy
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            resized = picture.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError) as error:
        raise SettingError(f"attack.{attack}.pattern: cannot read {path} as a picture: {error}") from error
    return torch.from_numpy(numpy.array(resized)).permute(2, 0, 1).float()
