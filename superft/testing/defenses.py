"""The suite of defenses: `DefenseSuite` in a test file, or any check of it by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from superft.testing import defense_checks, defense_settings, space_checks, toy_victims
from superft.testing.defense_subject import Subject
from superft.testing.threads import one_thread
from superft.testing.toy import NEEDS_ACCURACY

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    # First what names a mistake best: everything behind it would fail as well.
    defense_checks.declares_what_it_owns,
    defense_settings.every_field_is_a_setting,
    defense_settings.impossible_settings_are_refused_by_name,
    defense_checks.returns_a_repair,
    defense_checks.same_seed_gives_the_same_weights,
    defense_checks.counters_equal_what_hooks_counted,
    defense_checks.plan_is_what_the_run_really_did,
    defense_checks.returned_model_is_the_one_that_is_measured,
    defense_checks.model_predicts_the_same_after_a_reload,
    defense_checks.victim_and_assets_are_left_as_they_were,
    defense_checks.forbidden_data_is_never_read,
    defense_checks.forbidden_data_cannot_be_reached,
    defense_checks.a_permuted_training_set_gives_permuted_findings,
    defense_checks.findings_are_about_the_training_set,
    defense_checks.false_alarms_on_clean_data_are_told,
    defense_checks.a_rate_beyond_all_bounds_diverges_by_name,
    defense_settings.every_setting_changes_the_run_or_is_refused,
    defense_checks.repaired_row_is_json,
    space_checks.published_point_lies_in_the_search_space,
    space_checks.every_point_of_the_search_space_builds_the_defense,
)


def make_subject(
    name: str,
    small: Mapping[str, Any] = MappingProxyType({}),
    needs_accuracy: bool = False,
    model: str = "preact_resnet18",
) -> Subject:
    """A registered defense against the shared victim of the toy task; see `DefenseSuite`."""
    victim = toy_victims.victim(model)
    if needs_accuracy or name in NEEDS_ACCURACY:
        victim = dataclasses.replace(victim, model=toy_victims.accurate_model(model))
    return Subject(name, victim, toy_victims.toy(), small)


class DefenseSuite:
    """Put a registered defense under every check: subclass it in a test file and name the defense.

    Its settings are halved until the work that it plans is small; rates and thresholds stay as they are.

    Args:
        name: of the defense; the test file imports the module that registers it.
        small: settings at which a few steps show what its fields do; most defenses need none.
        needs_accuracy: it acts on how often a model is right: tried on a model that is right about most images.
    """

    name: ClassVar[str]
    small: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    needs_accuracy: ClassVar[bool] = False

    _subject: ClassVar[Subject]

    @classmethod
    def subject(cls) -> Subject:
        """Shared by all checks of a suite, so that what has been run once is not run again."""
        if "_subject" not in cls.__dict__:  # a subclass of a suite is a suite of its own
            cls._subject = make_subject(cls.name, cls.small, cls.needs_accuracy)
        return cls._subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_defense(self, check: Check) -> None:
        with one_thread():
            check(self.subject())
