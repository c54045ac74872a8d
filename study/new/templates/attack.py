"""My attack (AUTHORS YEAR, arXiv:NUMBER): one sentence that says what the trigger is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.triggers import Trigger, trigger_kind
from trainables.registry import SettingError


# The trigger. It maps float images in [0, 1], (N, 3, H, W), to triggered images of the same shape, again in [0, 1]:
# without chance, each image by itself, and without writing into its input. A victim's trigger is stored as its kind,
# its settings and its state, and is rebuilt from these three anywhere:
# - what is a tensor (a pattern, a mask) is a buffer: self.register_buffer(...);
# - all else that the constructor was given stands in settings(), as JSON.
# For one fixed picture take OverlayTrigger or AdditiveTrigger of trainables.attacks.fixed, and leave this class out.
@trigger_kind("my_attack")
class MyAttackTrigger(Trigger):
    """Turns a square in the upper left corner towards its negative: x' = x + strength (1 - 2 x).

    Args:
        size: side of the square in pixels.
        strength: 1 is the whole negative.
    """

    def __init__(self, size: int, strength: float) -> None:
        super().__init__()
        self.size, self.strength = size, strength

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "strength": self.strength}

    def forward(self, images: Tensor) -> Tensor:
        triggered = images.clone()
        square = images[:, :, : self.size, : self.size]
        triggered[:, :, : self.size, : self.size] = torch.lerp(square, 1.0 - square, self.strength)
        return triggered


# The settings. Each field is a key of a study (attack.my_attack.size) and of the victim's identity; target_label,
# label_mode, poison_rate, clean_label and others come with DataPoisoning. Without @dataclass no field would be one.
# An attack that trains differently (not only on changed images) derives from Attack and writes implant() itself, and
# planned_work(), which tells how much that is before it is done.
@register("my_attack")
@dataclass(frozen=True)
class MyAttack(DataPoisoning):
    """One line for ``superft list attacks``: what it does to an image.

    Args:
        size: side of the square in pixels, >= 1.
        strength: share of the way to the negative, in (0, 1].
    """

    size: int = 4
    strength: float = 1.0

    # A field that does nothing at the defaults is named here, with settings beside which it matters:
    # matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"margin": {"position": "bottom_right"}}

    def __post_init__(self) -> None:
        """Values that are wrong for every task end here, as ValueError: field, what is allowed, what was given."""
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size must be >= 1, got {self.size}")
        if not 0.0 < self.strength <= 1.0:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        """What does not fit *this* task ends here, before any work. (``image_size`` is 0 where it does not matter.)"""
        super().check(labels, num_classes, image_size)
        if image_size and self.size > image_size:
            raise SettingError(
                f"attack.{self.name}.size must be at most the image size ({image_size}), got {self.size}"
            )

    # identity() (part of the victim's key) holds all fields by itself. Overwrite it only where a field names something
    # outside, like a picture file: then its content decides, not its path.

    def make_trigger(self, image_size: int, seed: int) -> MyAttackTrigger:
        """Random parts come from ``generator_for(seed, "my_attack")`` (trainables.seeding), never from torch's own."""
        return MyAttackTrigger(self.size, self.strength)
