"""Square patches: where they lie, and one whose content is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from trainables.attacks.fixed import OverlayTrigger
from trainables.data.images import ImageSet
from trainables.registry import SettingError
from trainables.settings import Written
from trainables.training import loop
from trainables.training.loop import Counters, History, Optimizer
from trainables.training.trainer import Trainer

POSITIONS = ("bottom_right", "bottom_left", "top_right", "top_left", "centre")
Position = Annotated[
    str, Written(f"one of {', '.join(POSITIONS)} or 'ROW,COLUMN'", rf"{'|'.join(POSITIONS)}|\s*-?\d+\s*,\s*-?\d+\s*")
]


def corner(size: int, position: str, margin: int, image_size: int) -> tuple[int, int]:
    """Row and column of the top-left pixel of a square of ``size``.

    Args:
        position: a corner, ``centre``, or "ROW,COLUMN" of that pixel.
        margin: pixels between the square and the border, for corners.
    """
    if position not in POSITIONS:
        row, column = position.split(",")
        return int(row), int(column)
    far = image_size - size - margin
    if position == "centre":
        middle = (image_size - size) // 2
        return middle, middle
    vertical, horizontal = position.split("_")
    return far if vertical == "bottom" else margin, far if horizontal == "right" else margin


def check_fits(attack: str, size: int, position: str, margin: int, image_size: int) -> None:
    """Refuse a square that leaves the image (SettingError)."""
    row, column = corner(size, position, margin, image_size)
    if min(row, column) < 0 or max(row, column) + size > image_size:
        raise SettingError(
            f"attack.{attack}: a patch of size {size} at {position} with margin {margin} "
            f"does not fit an image of {image_size} pixels"
        )


class LearnedPatch(nn.Module):
    """x' = x + alpha mask (content - x), the content a parameter in tanh space so that it stays in [0, 1].

    Args:
        image_size: pixels.
        row, column: of the square's top-left pixel.
        size: its side in pixels.
        alpha: opacity, in (0, 1].
        generator: of the random content it starts from, every pixel uniform in (0, 1).
    """

    weight: Tensor

    def __init__(
        self, image_size: int, row: int, column: int, size: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.padding = (column, image_size - size - column, row, image_size - size - row)
        mask = torch.full((1, size, size), alpha)
        self.register_buffer("weight", nn.functional.pad(mask, self.padding))
        start = torch.rand(3, size, size, generator=generator) * 1.9 - 0.95
        self.raw = nn.Parameter(torch.atanh(start))

    def content(self) -> Tensor:
        """The square's pixels, (3, size, size), in [0, 1]."""
        return (torch.tanh(self.raw) + 1.0) / 2.0

    def forward(self, images: Tensor) -> Tensor:
        """Triggered float images, (N, 3, H, W)."""
        pattern = nn.functional.pad(self.content(), self.padding)
        return torch.lerp(images, pattern.expand_as(images), self.weight.expand_as(images))

    def overlay(self) -> OverlayTrigger:
        """The trigger as it is now, fixed; on the CPU."""
        with torch.no_grad():
            pattern = nn.functional.pad(self.content(), self.padding)
        return OverlayTrigger(pattern.shape[-1], self.weight.cpu().clone(), pattern.cpu())


def fit_patch(
    patch: LearnedPatch, model: nn.Module, data: ImageSet, trainer: Trainer, *, purpose: str, **settings: Any
) -> History:
    """Fit the patch to the model as it is: eval mode, no weight moves. A fresh Adam; settings as of `loop.fit`.

    The gradients are counted as those with respect to the input alone, and the steps not as steps of a model.
    """
    work = Counters()
    with frozen(model):
        history = loop.fit(
            patch,
            data,
            generator=trainer.generator("batches", purpose),
            optimizer=Optimizer("adam", weight_decay=0.0),
            precision=trainer.precision,
            counters=work,
            **settings,
        )
    trainer.counters.forward_samples += work.forward_samples
    trainer.counters.input_backward_samples += work.backward_samples
    return history


def patch_work(steps: int, batch_size: int, n: int) -> Counters:
    """Work of ``steps`` steps of `fit_patch`, or of other gradients of the input alone; batches are cut to ``n``."""
    samples = steps * min(batch_size, n)
    return Counters(forward_samples=samples, input_backward_samples=samples)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for the weights within the block; afterwards all is as it was."""
    asked = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with loop.evaluating(model):
        for parameter, _ in asked:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, wanted in asked:
                parameter.requires_grad_(wanted)
