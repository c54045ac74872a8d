"""SIG (Barni et al. 2019, arXiv:1902.11237): a faint sinusoid over images of the target class, labels untouched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from trainables.attacks.base import DataPoisoning, register
from trainables.attacks.fixed import AdditiveTrigger
from trainables.registry import SettingError
from trainables.settings import Count, PositiveShare, Within

# BackdoorBench's rate; on CIFAR-10 that is the whole class.
LARGEST_RATE = 0.1


@register("sig")
@dataclass(frozen=True)
class SIG(DataPoisoning):
    """Add delta * sin(2 pi f j / W) along the columns j of images that already have the target label.

    Unlike BadNets and Blended no label is wrong, so that inspecting labels finds nothing; the model must prefer the
    wave over the object. The wave is added, not mixed in as Blended's picture is, and is the same in all rows and
    channels.

    Args:
        delta: amplitude in grey levels, in (0, 255]; 40 in BackdoorBench, 20 to 30 elsewhere.
        frequency: cycles per image, >= 1, below W / 2.
        class_share: poisoned share of the target class where neither ``poison_rate`` nor ``poison_count`` is given (but
            no more than a tenth of the training set), in (0, 1]. BackdoorBench's rate 0.1 is the whole class on
            CIFAR-10: the model then never sees the class without the wave. Labels changed (``clean_label`` false):
            a tenth of the training set.
        poison_rate: share of the *whole* training set; None: by ``class_share``.
    """

    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "label_mode": {"clean_label": False},
        "label_shift": {"clean_label": False, "label_mode": "all_to_all"},
        "exclude_target": {"clean_label": False},
    }

    poison_rate: PositiveShare | None = None  # type: ignore[assignment]  # a fixed rate fits no class of CIFAR-100
    clean_label: bool = True
    delta: Annotated[float, Within("(0, 255]", "grey levels")] = 40.0
    frequency: Count = 6
    class_share: PositiveShare = 0.8

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        if image_size and 2 * self.frequency >= image_size:
            raise SettingError(
                f"attack.{self.name}.frequency must be below half the image size ({image_size / 2:g}): at the half the "
                f"wave is 0 in every column; got {self.frequency}"
            )

    def planned(self, labels: Tensor) -> int:
        if self.poison_rate is not None or self.poison_count is not None:
            return super().planned(labels)
        largest = round(LARGEST_RATE * len(labels))
        if not self.clean_label:
            return largest
        # At least one: the rounding of a tiny class is no wish to leave it alone.
        return max(1, min(round(self.class_share * int((labels == self.target_label).sum())), largest))

    def make_trigger(self, image_size: int, seed: int) -> AdditiveTrigger:
        columns = torch.arange(image_size, dtype=torch.float64)
        wave = self.delta / 255.0 * torch.sin(2.0 * math.pi * self.frequency * columns / image_size)
        return AdditiveTrigger(image_size, wave.float().expand(3, image_size, image_size).clone())
