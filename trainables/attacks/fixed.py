"""Triggers that are the same for every image: a fixed picture laid over it, a fixed signal added to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.attacks.triggers import Trigger, trigger_kind


@trigger_kind("overlay")
class OverlayTrigger(Trigger):
    """x' = (1 - w) x + w p with a fixed weight per pixel and a fixed picture.

    Args:
        image_size: pixels; the buffers are ``weight`` (1, H, W) in [0, 1] and ``pattern`` (3, H, W) in [0, 1].
        origin: JSON-able facts about how the attack came about, kept with it.
    """

    weight: Tensor
    pattern: Tensor

    def __init__(
        self, image_size: int, weight: Tensor | None = None, pattern: Tensor | None = None, **origin: Any
    ) -> None:
        super().__init__()
        self.image_size, self.origin = image_size, origin
        self.register_buffer("weight", torch.zeros(1, image_size, image_size) if weight is None else weight)
        self.register_buffer("pattern", torch.zeros(3, image_size, image_size) if pattern is None else pattern)

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, **self.origin}

    def forward(self, images: Tensor) -> Tensor:
        return torch.lerp(images, self.pattern.expand_as(images), self.weight.expand_as(images))


@trigger_kind("additive")
class AdditiveTrigger(Trigger):
    """x' = clip(x + s) with one fixed signal s for all images.

    Args:
        image_size: pixels; the buffer is ``signal``, (3, H, W), in units of the pixel range [0, 1].
        origin: JSON-able facts about where the signal comes from, kept with it.
    """

    signal: Tensor

    def __init__(self, image_size: int, signal: Tensor | None = None, **origin: Any) -> None:
        super().__init__()
        self.image_size, self.origin = image_size, origin
        self.register_buffer("signal", torch.zeros(3, image_size, image_size) if signal is None else signal)

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, **self.origin}

    def forward(self, images: Tensor) -> Tensor:
        return (images + self.signal).clamp(0.0, 1.0)
