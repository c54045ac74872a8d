"""The file of claims names things that exist, and its readings are those that the defense itself knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from study.claims.paper import AS_VICTIM, CLAIMS_FILE, read_paper
from study.claims.runs import choices
from study.spec.yaml_io import SpecError
from tests.study.claims.made_up import PAPER, READINGS
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.defenses.super_ft import READINGS as KNOWN
from trainables.defenses.super_ft import SuperFineTuning, reading
from trainables.training.recipes import RECIPES


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "one_cycle"])
def test_the_recipes_readings_are_those_of_the_defense(name: str) -> None:
    assert READINGS[name].settings({}) == dataclasses.asdict(reading(name))


@pytest.mark.parametrize("name", [name for name in READINGS if name.endswith("-high")])
def test_high_is_the_other_value_of_lr_max2_and_nothing_else(name: str) -> None:
    of = READINGS[name.removesuffix("-high")]
    assert READINGS[name].settings({}) == {**of.settings({}), "lr_max2": 0.005}


def test_p1_in_epochs_is_as_long_as_p1_on_all_of_cifar10_and_no_longer_on_less() -> None:
    own = READINGS["P1-epochs"]
    schedule = DEFENSES.create(own.method, own.settings({}))
    assert isinstance(schedule, SuperFineTuning)
    assert READINGS["P1"].settings({"length_unit": "epoch", "iterations": 3}) == own.settings({})
    # Rounded up to whole epochs of 196 and, over a tenth of the images, 20 steps.
    assert [schedule.schedule(images).total_steps for images in (50_000, 5_000)] == [2 * 3 * 196, 2 * 3 * 20]


def test_claims_name_attacks_defenses_settings_and_recipes_that_exist() -> None:
    for claim in PAPER.claims:
        assert set(claim.attacks) <= set(ATTACKS.names()), claim.id
        changes = {**claim.settings, **(claim.minus.settings if claim.minus else {})}
        if claim.under == "schedule":
            READINGS["P1"].settings(changes)
        elif claim.repair is not None:
            stated = {**claim.repair.settings, **changes}
            for key, wanted in stated.items():
                for value in choices(wanted):
                    DEFENSES.create(claim.repair.method, {} if value == AS_VICTIM else {key: value})
        recipes = PAPER.conditions_of(claim)["recipe"]
        assert isinstance(recipes, tuple)
        assert set(recipes) <= set(RECIPES)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("expect: {asr: {value: 0.044}}", "expect: {asr: {value: 0.044, above: 0.1}}", "value or bounds"),
        ("id: fig13-10\n", "id: fig13-20\n", "two claims"),
        ("to: 1.1, near: 1.0}", "to: 1.1, near: 2.0}", "near 2 is not within 0.5 to 1.1"),
        ("clean_fraction: [0.2]", "clean_fraction: {from: 0.1, to: 0.3, near: 0.2}", "near is of passes alone"),
        ("claims: [table1-imc]", "claims: [table9]", "table9"),
        ("clean_fraction: [0.2]", "clean_share: [0.2]", "clean_share"),
        ("caveats: [picture]", "caveats: [colour]", "colour"),
        ("datasets: [cifar10]", "data: [cifar10]", "data"),
        ("expect: {asr: {at_least: -0.1, at_most: 0.1}}", "expect: {asr: {value: 0.1}}", "give bounds"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(old: str, new: str, named: str, tmp_path: Path) -> None:
    text = CLAIMS_FILE.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "claims.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError, match=named) as raised:
        read_paper(tmp_path / "claims.yaml")
    assert "\n" not in str(raised.value)
