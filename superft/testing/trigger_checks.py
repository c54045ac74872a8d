"""What every trigger must hold, asked of the trigger alone, so that a wrong one is named before anything is trained."""

from __future__ import annotations

import dataclasses
import json

import torch
from torch import Tensor

from superft.testing.attack_subject import Subject
from superft.testing.fields import alternatives
from superft.testing.toy_victims import toy
from trainables.attacks.triggers import TRIGGERS, Trigger, rebuild_trigger
from trainables.data.images import to_float
from trainables.registry import SettingError

# Of float32 arithmetic on values in [0, 1].
ROUNDING = 1e-6


def trigger_returns_images(subject: Subject) -> None:
    """Of the shape that it was given, finite and in [0, 1], whatever the picture: black and white ones too."""
    trigger = subject.trigger  # before gradients are off: it may have to be trained
    photographs = to_float(toy().test.images)
    extremes = torch.stack([torch.zeros_like(photographs[0]), torch.ones_like(photographs[0])])
    for images in (photographs, photographs[:1], extremes):
        with torch.no_grad():
            found = trigger(images)
        complaint = not_images(found, images)
        assert complaint is None, f"attack.{subject.name}: the trigger returns {complaint}"


def not_images(found: object, images: Tensor) -> str | None:
    """What is wrong with a trigger's answer to ``images``, in words; None if nothing is."""
    if not isinstance(found, Tensor):
        return f"{type(found).__name__} where a tensor is wanted"
    if found.shape != images.shape:
        return f"shape {tuple(found.shape)} for images of shape {tuple(images.shape)}"
    if not found.is_floating_point():
        return f"{found.dtype} where float is wanted"
    if not bool(found.isfinite().all()):
        return "NaN or infinite values"
    low, high = float(found.min()), float(found.max())
    if low < -ROUNDING or high > 1.0 + ROUNDING:
        return f"values from {low:g} to {high:g} where [0, 1] is wanted"
    return None


def trigger_is_rebuilt_from_kind_settings_and_state(subject: Subject) -> None:
    """At the defaults, and with each setting at another value where triggers can be had without a training."""
    assert_rebuildable(subject.name, subject.trigger)
    for item in dataclasses.fields(subject.attack):
        for value in [*subject.others.get(item.name, ()), *alternatives(subject.attack, item.name)]:
            if subject.accepts(16, **{item.name: value}):
                attack = subject.spec(**{item.name: value}).make_attack()
                if (trigger := attack.preview_trigger(16, 0)) is not None:
                    assert_rebuildable(subject.name, trigger)


def assert_rebuildable(attack: str, trigger: Trigger) -> None:
    """A victim's trigger is stored as its kind, its settings (JSON) and its state, and must come back from them."""
    whose = f"attack.{attack}: the trigger {type(trigger).__name__}"
    kind = getattr(trigger, "kind", "")
    assert kind in TRIGGERS, f"{whose} has no kind: put @trigger_kind(NAME) above its class"
    registered = TRIGGERS.get(kind)
    assert registered is type(trigger), (
        f"{whose} has the kind {kind!r} of {registered.__name__}: give it one of its own"
    )
    try:
        settings = json.loads(json.dumps(trigger.settings(), allow_nan=False))
        rebuilt = rebuild_trigger(kind, settings, trigger.state_dict())
    except (SettingError, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise AssertionError(
            f"{whose} cannot be rebuilt from its settings {trigger.settings()} and its state "
            f"({type(error).__name__}: {error})"
        ) from error
    images = to_float(toy().test.images)
    with torch.no_grad():
        assert torch.equal(rebuilt(images), trigger(images)), (
            f"{whose} is another one when it is rebuilt: settings() gives {settings}, which leaves out something that "
            "its constructor was given"
        )
