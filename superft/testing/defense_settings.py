"""What every defense must hold about its settings: each is real, does something, and is refused where it cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from safetensors.torch import save

from superft.testing.defense_subject import BUDGET, Subject, cost
from superft.testing.fields import alternatives, lost_fields, matters_with
from trainables.data.images import DataError
from trainables.defenses.base import DEFENSES, Defense
from trainables.registry import SettingError
from trainables.training.loop import DivergedError

# A setting has this many runs to show what it does. In one alone a threshold may fall between the same two masks by
# chance, and where it falls is a matter of rounding, which is not that of every CPU.
SEEDS = range(4)


def every_field_is_a_setting(subject: Subject) -> None:
    """None is lost because ``@dataclass`` is missing or a default was written without its type."""
    assert lost_fields(DEFENSES.get(subject.name)) == []


def every_setting_changes_the_run_or_is_refused(subject: Subject) -> None:
    """A field that nothing depends on would be searched in vain.

    Tried at the small settings, beside those that the defense declares in `matters_with`, and with small batches: the
    toy set is smaller than a usual batch, which hides what counts in epochs.
    """
    declared = matters_with(type(subject.defense))
    names = [item.name for item in dataclasses.fields(subject.defense)]
    assert declared.keys() <= set(names)
    for name in names:
        contexts = (
            [declared[name]] if name in declared else [{}, *([{"batch_size": 8}] if "batch_size" in names else [])]
        )
        assert any(
            _matters(subject, name, context, seed) for seed in SEEDS for context in contexts if name not in context
        ), f"defense.{subject.name}.{name} changes nothing beside {contexts}; declare in matters_with what it needs"


def _matters(subject: Subject, name: str, context: Mapping[str, Any], seed: int) -> bool:
    """Whether some other value of field ``name`` gives another outcome, all else being equal."""
    base = _beside(subject, context)
    kept = getattr(DEFENSES.create(subject.name, base), name)
    for value in alternatives(DEFENSES.create(subject.name, base), name):
        first, second = _outcome(subject, base, seed), _outcome(subject, {**base, name: value}, seed)
        if (
            second is None
        ):  # refused, or too much work; in the latter case a base that is small with the new value may do
            try:
                small = _beside(subject, {**context, name: value})
            except SettingError:
                continue
            first, second = _outcome(subject, {**small, name: kept}, seed), _outcome(subject, small, seed)
        if first is not None and second is not None and first != second:
            return True
    return False


def _beside(subject: Subject, context: Mapping[str, Any]) -> dict[str, Any]:
    """Small settings beside those of ``context``; what is large by itself (four epochs) stays as large as it is."""
    try:
        return subject.small_beside(**context)
    except AssertionError:
        DEFENSES.create(subject.name, {**subject.settings, **context})
        return {**subject.settings, **context}


def _outcome(subject: Subject, settings: Mapping[str, Any], seed: int) -> str | None:
    """Something that differs when runs differ; None where the settings are refused or cost too much to look."""
    key = repr((seed, sorted(settings.items())))
    if key not in subject.outcomes:
        subject.outcomes[key] = None
        try:
            defense = DEFENSES.create(subject.name, settings)
            if cost(defense, subject.n_owned) <= 4 * BUDGET:
                run, _ = subject.run(defense, seed=seed)
                state = save({name: tensor.contiguous() for name, tensor in run.state.items()})
                found = run.repair
                subject.outcomes[key] = repr(
                    (hash(state), found.status, found.removed, found.scores, found.flagged_classes)
                )
        except (SettingError, DataError, DivergedError):
            pass
    return subject.outcomes[key]


def one_setting_changed(subject: Subject) -> Iterator[Defense]:
    """The small settings, and each with one categorical or boolean field at every other value."""
    yield subject.defense
    for item in dataclasses.fields(subject.defense):
        for value in alternatives(subject.defense, item.name):
            if isinstance(value, bool | str):
                try:
                    candidate = subject.create(**{item.name: value})
                except SettingError:
                    continue
                if cost(candidate, subject.n_owned) <= 4 * BUDGET:
                    yield candidate


def impossible_settings_are_refused_by_name(subject: Subject) -> None:
    for item in dataclasses.fields(subject.defense):
        hint = get_type_hints(type(subject.defense))[item.name]
        for value in (object(), "no such value", float("nan")):
            if isinstance(value, str) and (hint is str or str in get_args(hint)):
                continue
            try:
                DEFENSES.create(subject.name, {item.name: value})
            except SettingError as error:
                message = str(error)
            else:
                message = ""
            assert f"{subject.name}.{item.name}" in message, f"{item.name}={value!r} is not refused by name"
            assert "\n" not in message
