"""The suites of attacks and defenses once more, over the small fast model: none may need a residual net."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from superft.testing import attack_subject, attacks, defense_subject, defenses, toy_victims
from superft.testing.attack_settings import every_field_changes_the_attack_or_is_refused
from superft.testing.defense_settings import every_setting_changes_the_run_or_is_refused
from superft.testing.toy import NEEDS_ACCURACY
from tests.contracts.test_attacks import OTHERS, OTHERS_OF
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.storage.store import Store
from trainables.victims import Victim

Check = Callable[[Any], None]

MODEL = "airbench_cnn"
# Most of the time goes into trying every field by itself, which asks more of the method than of the model, and into
# victims that have learned their task.
SLOW: tuple[Check, ...] = (
    every_field_changes_the_attack_or_is_refused,
    every_setting_changes_the_run_or_is_refused,
    *attacks.LEARNED,
)
# Attacks whose default form is built for PreAct-ResNet18 alone.
SMALL: dict[str, dict[str, Any]] = {"handcrafted": {"form": "head"}}


@pytest.fixture(scope="module")
def attack(request: pytest.FixtureRequest) -> attack_subject.Subject:
    name = request.param
    return attack_subject.Subject(name, SMALL.get(name, {}), {**OTHERS, **OTHERS_OF.get(name, {})}, MODEL)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return toy_victims.obtain(Store(tmp_path_factory.mktemp("store")), MODEL)


@pytest.fixture(scope="module")
def defense(request: pytest.FixtureRequest, victim: Victim) -> defense_subject.Subject:
    name = request.param
    if name in NEEDS_ACCURACY:
        victim = dataclasses.replace(victim, model=toy_victims.accurate_model(MODEL))
    return defense_subject.Subject(name, victim, toy_victims.toy())


def cases(names: Sequence[str], checks: Sequence[Check], slow: Sequence[Check]) -> list[ParameterSet]:
    """Every name under every check; those that take minutes are slow."""
    return [
        pytest.param(name, check, marks=[pytest.mark.slow] if check in slow else [], id=f"{name}-{check.__name__}")
        for name in names
        for check in checks
    ]


@pytest.mark.parametrize(("attack", "check"), cases(ATTACKS.names(), attacks.CHECKS, SLOW), indirect=["attack"])
def test_attack(attack: attack_subject.Subject, check: Check) -> None:
    check(attack)


@pytest.mark.parametrize(("defense", "check"), cases(DEFENSES.names(), defenses.CHECKS, SLOW), indirect=["defense"])
def test_defense(defense: defense_subject.Subject, check: Check) -> None:
    check(defense)
