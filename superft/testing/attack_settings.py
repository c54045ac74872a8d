"""What every attack must hold about its settings: each is real, does something, and is refused where it cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from superft.testing.attack_subject import Subject
from superft.testing.fields import alternatives, lost_fields, matters_with
from superft.testing.toy_victims import toy
from trainables.attacks.base import ATTACKS, Attack, DataPoisoning
from trainables.attacks.triggers import stamp
from trainables.registry import SettingError

IMAGE_SIZE = 16
# Words of a field's name that say that it is a length in pixels of the image.
LENGTHS = {"size", "side", "margin"}
# Fields that every attack has, whether it wants them or not.
INHERITED = {item.name for item in dataclasses.fields(Attack)}


def every_field_is_a_setting(subject: Subject) -> None:
    """None is lost because ``@dataclass`` is missing or a default was written without its type."""
    assert lost_fields(ATTACKS.get(subject.name)) == []


def every_field_changes_the_attack_or_is_refused(subject: Subject) -> None:
    """A field that nothing depends on would be varied in vain.

    Tried over the small settings, beside those that the attack declares in ``matters_with``. Free text is tried where
    the suite was told other values (``others``).
    """
    attack = subject.attack
    declared, names = matters_with(type(attack)), [item.name for item in dataclasses.fields(attack)]
    assert declared.keys() <= set(names), f"attack.{subject.name}: matters_with names no field {declared.keys()}"
    idle = []
    for name in names:
        context = declared.get(name, {})
        if not [*subject.others.get(name, ()), *alternatives(attack, name)]:
            continue
        if not _matters(subject, name, context):
            idle.append(f"attack.{subject.name}.{name} changes nothing beside {dict(context)}")
    assert not idle, f"{'; '.join(idle)}: use it, or declare in matters_with what it needs"


def _matters(subject: Subject, name: str, context: Mapping[str, Any]) -> bool:
    """Whether some other value of field ``name`` gives another attack, all else being equal."""
    before = subject.outcome(**context)
    try:
        attack = subject.spec(**context).make_attack()
    except SettingError:
        return name in INHERITED  # an attack without all_to_all has no use for a shift, and says so
    for value in [*subject.others.get(name, ()), *alternatives(attack, name)]:
        after = subject.outcome(**{**context, name: value})
        if before is not None and after is not None and before != after:
            return True
    return False


def sizes_beyond_the_image_are_refused(subject: Subject) -> None:
    """By ``check``, before any work: a patch that is cut at the border without a word is not the one asked for.

    Held to it are whole numbers whose name says that they are a length (`LENGTHS`), and those that change the trigger
    until they reach the image's size and no more beyond it. Lengths are in pixels of the image; an attack that scales
    them says with ``lengths_are_of`` of what side they are.
    """
    for name in _whole_numbers(subject):
        words = set(name.split("_"))
        if words & LENGTHS and "batch" not in words:
            too_long = getattr(type(subject.attack), "lengths_are_of", IMAGE_SIZE) + 1
            assert not subject.accepts(IMAGE_SIZE, **{name: too_long}), (
                f"attack.{subject.name}.{name}={too_long} is accepted for images of {IMAGE_SIZE} pixels: "
                "refuse it in check"
            )
        small, beyond, far = (_drawn(subject, name, size) for size in (IMAGE_SIZE // 2, IMAGE_SIZE + 1, 4 * IMAGE_SIZE))
        assert beyond is None or beyond != far or beyond == small, (
            f"attack.{subject.name}.{name}={4 * IMAGE_SIZE} is cut to the image of {IMAGE_SIZE} pixels without a word: "
            "refuse it in check"
        )


def _whole_numbers(subject: Subject) -> Iterator[str]:
    hints = get_type_hints(type(subject.attack))
    for item in dataclasses.fields(subject.attack):
        if hints[item.name] is int or int in get_args(hints[item.name]):
            yield item.name


def _drawn(subject: Subject, name: str, value: int) -> str | None:
    """Digest of what the trigger draws; None where the value is refused or the trigger comes out of a training."""
    if not subject.accepts(IMAGE_SIZE, **{name: value}):
        return None
    attack = ATTACKS.create(subject.name, {**subject.small, name: value})
    try:
        trigger = attack.preview_trigger(IMAGE_SIZE, 0)
        if trigger is None:
            return None
        drawn = stamp(trigger, toy().test.images)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise AssertionError(
            f"attack.{subject.name}.{name}={value} is accepted for images of {IMAGE_SIZE} pixels and then fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    return hashlib.blake2b(drawn.contiguous().numpy().tobytes()).hexdigest()


def impossible_tasks_are_refused_in_one_line(subject: Subject) -> None:
    labels = toy().train.labels

    def refusal(**settings: Any) -> str | None:
        try:
            ATTACKS.create(subject.name, settings).check(labels, 10, 16)
        except SettingError as error:
            return str(error)
        return None

    attack = ATTACKS.create(subject.name)
    # An attack may be clean-label by default, which all_to_all contradicts.
    relabelling = {"clean_label": False} if isinstance(attack, DataPoisoning) else {}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"target_label": 10}, "target_label"),
        ({"target_label": -1}, "target_label"),
        ({"target_label": "cat"}, "target_label"),
        ({"label_mode": "some_to_one"}, "label_mode"),
        ({"label_mode": "all_to_all", "label_shift": 10, **relabelling}, "label_shift"),
        ({"no_such_setting": 1}, "no_such_setting"),
    )
    for settings, named in cases:
        message = refusal(**settings)
        assert message is not None, settings
        assert named in message
        assert "\n" not in message
    if isinstance(attack, DataPoisoning):
        rates: tuple[dict[str, Any], ...] = (
            {"poison_rate": 0.0},
            {"poison_rate": 1.1},
            {"poison_rate": 1e-9},
            {"poison_count": 0},
            {"poison_count": 201},
            {"clean_label": True, "poison_rate": 0.5},
        )
        for settings in rates:
            message = refusal(**settings)
            assert message is not None, settings
            assert "poison_" in message or "clean_label" in message
            assert "\n" not in message


def identity_is_json_and_names_every_setting(subject: Subject) -> None:
    attack = ATTACKS.create(subject.name)
    identity = attack.identity()
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity
    assert {field.name for field in dataclasses.fields(attack)} <= identity.keys()
    assert identity["attack"] == subject.name
