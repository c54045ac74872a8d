"""The suites of attacks and defenses once more, over the small fast model: none may need a residual net."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from superft.testing import attack_subject, attacks, defense_checks, defense_subject, defenses
from superft.testing.attack_checks import stored_victim_has_the_same_rates_after_loading
from superft.testing.defense_settings import every_setting_changes_the_run_or_is_refused
from tests.contracts.test_attacks import OTHERS, OTHERS_OF
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

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


@functools.cache
def attack(name: str) -> attack_subject.Subject:
    return attack_subject.Subject(name, SMALL.get(name, {}), {**OTHERS, **OTHERS_OF.get(name, {})}, MODEL)


@functools.cache
def defense(name: str) -> defense_subject.Subject:
    return defenses.make_subject(name, model=MODEL)


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


@pytest.mark.parametrize(("name", "check"), cases(ATTACKS.names(), attacks.CHECKS, ATTACKS_BY_DEFAULT))
def test_attack(name: str, check: Check) -> None:
    check(attack(name))


@pytest.mark.parametrize(("name", "check"), cases(DEFENSES.names(), defenses.CHECKS, DEFENSES_BY_DEFAULT))
def test_defense(name: str, check: Check) -> None:
    check(defense(name))
