"""A key that a spec does not have: one line says what was meant, also for settings of the study's methods."""

from __future__ import annotations

from typing import Any

import pytest

from study.spec.load import make_spec
from study.spec.yaml_io import SpecError

STUDY = {"attacks": ["badnets"], "defenses": ["super_ft"], "baselines": ["none", "scratch"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        # A method at the top, where its kind is left out.
        ({"super_ft": {"lr_max1": 1}}, "'super_ft': settings of a method are written defense.super_ft.lr_max1"),
        ({"badnets": {"sise": 3}}, "'badnets': settings of a method are written attack.badnets.size"),
        ({"superft": {"lr_max1": 1}}, "'superft': settings of a method are written defense.super_ft.lr_max1"),
        ({"clp": 3}, "'clp': settings of a method are written defense.clp.KEY"),
        # A setting at the top: of the methods that the study names.
        ({"lr_max1": 1}, "'lr_max1': did you mean 'defense.super_ft.lr_max1' or 'defense.scratch.lr_max1'?"),
        ({"cycle1": 1}, "'cycle1': did you mean 'defense.super_ft.cycles1'?"),
        ({"size": 3}, "'size': did you mean 'attack.badnets.size'?"),
        # A key of the spec that is nearer than any of these.
        ({"serch": {}}, "'serch': did you mean 'search'?"),
        ({"search": {"trails": 3}}, "'search.trails': did you mean 'search.trials'?"),
        ({"defens": {}}, "'defens': did you mean 'defense'?"),
        # A setting below its kind, where the method's name is left out.
        (
            {"defense": {"lr_max2": 1}},
            "defense.lr_max2: must be a mapping of keys, got 1; did you mean 'defense.super_ft.lr_max2' or",
        ),
        (
            {"attack": {"size": 1}},
            "attack.size: must be a mapping of keys, got 1; did you mean 'attack.badnets.size'?",
        ),
        ({"defense": {"ft": 3}}, "defense.ft: must be a mapping of keys, got 3"),
        # A setting of a method, misspelled.
        ({"defense": {"super_ft": {"cycle1": 1}}}, "unknown setting defense.super_ft.cycle1: did you mean 'cycles1'?"),
        ({"attack": {"badnets": {"sise": 1}}}, "unknown setting attack.badnets.sise: did you mean 'size'?"),
        ({"defense": {"superft": {}}}, "unknown defense 'superft': did you mean 'super_ft'?"),
    ],
)
def test_a_key_that_is_none_gets_the_key_that_was_meant(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(STUDY | given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_methods_that_do_not_exist_do_not_keep_the_hint_away() -> None:
    with pytest.raises(SpecError, match=r"unknown key 'sise': did you mean 'attack\.badnets\.size'\?"):
        make_spec(STUDY | {"attacks": ["nobody", "badnets"], "sise": 1})
