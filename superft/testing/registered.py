"""What is registered, by kind, with the suite of each kind: what `test_registered` runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from superft.testing import (
    attacks,
    data,
    data_checks,
    defenses,
    model_checks,
    models,
    sampler_checks,
    samplers,
)
from superft.testing.attack_subject import Subject as AttackSubject
from trainables.attacks.base import ATTACKS
from trainables.data.images import DataError
from trainables.defenses.base import DEFENSES
from trainables.plugins.load import load_installed
from trainables.registry import SettingError, nearest


@dataclass(frozen=True)
class Kind:
    """One kind of thing that can be registered.

    Args:
        names: of all that are registered.
        checks: its suite.
        make: name -> the subject of the checks.
    """

    names: Callable[[], Sequence[str]]
    checks: Sequence[Callable[[Any], None]]
    make: Callable[[str], Any]


KINDS: Mapping[str, Kind] = {
    "attack": Kind(ATTACKS.names, attacks.CHECKS, AttackSubject),
    "defense": Kind(DEFENSES.names, defenses.CHECKS, defenses.make_subject),
    "model": Kind(model_checks.names, models.CHECKS, model_checks.Subject),
    "data": Kind(data_checks.names, data.CHECKS, data_checks.Subject),
    "sampler": Kind(sampler_checks.names, samplers.CHECKS, sampler_checks.Subject),
}


def check_names(wanted: Mapping[str, Sequence[str]]) -> None:
    """Refuse names that nothing is registered under (SettingError)."""
    load_installed()
    for kind, names in wanted.items():
        known = KINDS[kind].names()
        for name in names:
            if name not in known and not (kind == "data" and name.startswith("folder:")):
                raise SettingError(f"--{kind}: unknown {kind} {name!r}: {nearest(name, known)}")


def chosen(config: pytest.Config, kind: str) -> Sequence[str]:
    """Names of this kind that a run is about: those asked for, or all where nothing of any kind was asked for."""
    load_installed()
    wanted = {other: config.getoption(f"--{other}", []) for other in KINDS}
    return KINDS[kind].names() if not any(wanted.values()) else wanted[kind]


@functools.cache
def subject(kind: str, name: str) -> Any:
    """What the checks of one thing share, so that what has been trained once is not trained again."""
    return KINDS[kind].make(name)


def is_at_hand(name: str) -> bool:
    """Whether the files of a data set are on this machine; nothing is fetched."""
    try:
        return bool(subject("data", name).data)
    except DataError:
        return False
