"""Triggers: what one is, its kind by which it is rebuilt anywhere, and how it is put on images."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.data.images import in_parts, quantise, to_float
from trainables.plugins.modules import PluginError
from trainables.registry import Registry

# How far outside [0, 1] a trigger's pixels may lie: one grey level, which `quantise` cuts off. Rounding is far below
# it in float32 and about as large in bfloat16; pixels of 0 to 255, or noise that nobody clipped, are far beyond.
TOLERANCE = 1.0 / 255.0
# Float copies of this many images at a time, so that stamping a whole set does not quadruple its memory.
STAMP_BATCH = 2048


class Trigger(nn.Module, ABC):
    """Maps float images in [0, 1], (N, 3, H, W), to triggered images of the same shape, deterministically.

    A trigger is rebuilt anywhere from its ``kind``, its ``settings`` (JSON) and its state dict (safetensors).
    """

    kind: ClassVar[str]
    # Whether it can be put on any image; False: it is known by the stored test images alone.
    applies: ClassVar[bool] = True

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor, JSON-able."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...


TRIGGERS: Registry[type[Trigger]] = Registry("trigger kind", "trainables.attacks")


def trigger_kind(kind: str) -> Callable[[type[Trigger]], type[Trigger]]:
    """Class decorator: make a trigger rebuildable by its kind."""

    def enter(cls: type[Trigger]) -> type[Trigger]:
        TRIGGERS.add(kind, cls)
        cls.kind = kind
        return cls

    return enter


def rebuild_trigger(kind: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Trigger:
    """The trigger that ``settings`` and ``state`` describe.

    Raises:
        SettingError: no attack that is here knows the kind.
    """
    trigger = TRIGGERS.get(kind)(**settings)
    trigger.load_state_dict(dict(state))
    return trigger.eval()


@torch.no_grad()
def stamp(trigger: Trigger, images: Tensor) -> Tensor:
    """Triggered and quantised copies of uint8 images (N, 3, H, W); the input stays as it is.

    Raises:
        PluginError: what the trigger makes of them are no such images.
    """
    trigger.to(images.device)
    if not len(images):  # no image of the target class, where labels go all to all
        return images.clone()
    parts = [quantise(_triggered(trigger, batch)).contiguous() for batch in in_parts(images, STAMP_BATCH)]
    return torch.cat(parts)


def _triggered(trigger: Trigger, batch: Tensor) -> Tensor:
    """What a trigger makes of a batch, once it is what a trigger must make of it."""
    made = trigger(to_float(batch))
    must = f"trigger {getattr(trigger, 'kind', type(trigger).__name__)} ({type(trigger).__name__}) must give"
    if not isinstance(made, Tensor) or made.shape != batch.shape:
        got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise PluginError(f"{must} images of the shape that it got, {tuple(batch.shape)}; it gave {got}")
    if not made.is_floating_point():
        raise PluginError(f"{must} float images, as it got; it gave {made.dtype}")
    low, high = (float(end) for end in made.aminmax())  # of NaN where there is one
    if not (low >= -TOLERANCE and high <= 1.0 + TOLERANCE):
        what = "values that are not finite" if low != low else f"values from {low:.4g} to {high:.4g}"
        raise PluginError(f"{must} values in [0, 1]; it gave {what}")
    return made


def check_trigger(attack: str, trigger: Trigger, images: Tensor) -> None:
    """Refuse a trigger that cannot be stamped, or not be rebuilt as the store does it.

    Args:
        attack: its name, for messages.
        images: uint8 (N, 3, H, W), a few.

    Raises:
        PluginError: one line.
    """
    name = f"attack {attack}: its trigger ({type(trigger).__name__})"
    if not isinstance(trigger, Trigger):
        raise PluginError(f"{name} must be a Trigger")
    if getattr(trigger, "kind", None) not in TRIGGERS:
        raise PluginError(f"{name} has no kind; put @trigger_kind above its class")
    try:
        settings = json.loads(json.dumps(trigger.settings()))
        state = {key: tensor.clone() for key, tensor in trigger.state_dict().items()}
        again = rebuild_trigger(trigger.kind, settings, state)
    except Exception as error:
        what = " ".join(str(error).split())
        raise PluginError(
            f"{name} cannot be rebuilt from its kind, settings() and state: {type(error).__name__}: {what}"
        ) from error
    if trigger.applies and len(images) and not _same(stamp(trigger.eval(), images), stamp(again, images)):
        raise PluginError(
            f"{name}, rebuilt from its kind, settings() and state, makes other images: a field is missing, or it is "
            "random"
        )


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether uint8 images are the same: to the last level on a CPU, but for rounding on a GPU.

    There two passes may take different kernels, and a value at the border of two levels lands on either side.
    """
    if left.device.type == "cpu":
        return torch.equal(left, right)
    return float(((left.int() - right.int()).abs() > 1).float().mean()) < 0.01
