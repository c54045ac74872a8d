"""The suites of attacks and defenses once more, over the small fast model: none may need a residual net."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from superft.testing import attack_subject, attacks, defense_checks, defense_subject, defenses, toy_victims
from superft.testing.attack_checks import stored_victim_has_the_same_rates_after_loading
from superft.testing.defense_settings import every_setting_changes_the_run_or_is_refused
from superft.testing.toy import NEEDS_ACCURACY
from tests.contracts.test_attacks import OTHERS, OTHERS_OF
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.storage.store import Store
from trainables.victims import Victim

Check = Callable[[Any], None]

MODEL = "airbench_cnn"
# By default an attack is carried out, stored and measured again, and a defense is run; the rest takes minutes, and most
# of it asks more of the method than of the model.
ATTACKS_BY_DEFAULT: tuple[Check, ...] = (stored_victim_has_the_same_rates_after_loading,)
DEFENSES_BY_DEFAULT: tuple[Check, ...] = (
    defense_checks.returns_a_repair,
    defense_checks.same_seed_gives_the_same_weights,
    defense_checks.counters_equal_what_hooks_counted,
    defense_checks.model_predicts_the_same_after_a_reload,
    defense_checks.victim_and_assets_are_left_as_they_were,
    defense_checks.returned_model_is_the_one_that_is_measured,
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


def cases(names: Sequence[str], checks: Sequence[Check], by_default: Sequence[Check]) -> list[ParameterSet]:
    """Every name under every check; all but a few are slow."""
    return [
        pytest.param(
            name, check, marks=[] if check in by_default else [pytest.mark.slow], id=f"{name}-{check.__name__}"
        )
        for name in names
        for check in checks
        # A setting about residual nets: every BatchNorm here has a convolution of its own.
        if (name, check) != ("clp", every_setting_changes_the_run_or_is_refused)
    ]


@pytest.mark.parametrize(
    ("attack", "check"), cases(ATTACKS.names(), attacks.CHECKS, ATTACKS_BY_DEFAULT), indirect=["attack"]
)
def test_attack(attack: attack_subject.Subject, check: Check) -> None:
    check(attack)


@pytest.mark.parametrize(
    ("defense", "check"), cases(DEFENSES.names(), defenses.CHECKS, DEFENSES_BY_DEFAULT), indirect=["defense"]
)
def test_defense(defense: defense_subject.Subject, check: Check) -> None:
    check(defense)
