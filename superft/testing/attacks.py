"""The suite of attacks: `AttackSuite` in a test file, or any check of it by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import pytest

from superft.testing import attack_checks, attack_settings, trigger_checks
from superft.testing.attack_subject import Subject
from superft.testing.threads import one_thread

Check = Callable[[Subject], None]

# These need a victim that has learned its task, which is most of the suite's time.
LEARNED: tuple[Check, ...] = (
    attack_checks.quantising_costs_less_than_a_point_of_asr,
    attack_checks.trigger_points_to_its_target_and_to_no_other_class,
)

CHECKS: tuple[Check, ...] = (
    # First what names a mistake best: everything behind it would fail as well.
    attack_settings.every_field_is_a_setting,
    trigger_checks.trigger_returns_images,
    trigger_checks.trigger_is_rebuilt_from_kind_settings_and_state,
    attack_settings.sizes_beyond_the_image_are_refused,
    attack_settings.impossible_tasks_are_refused_in_one_line,
    attack_settings.identity_is_json_and_names_every_setting,
    attack_settings.every_field_changes_the_attack_or_is_refused,
    attack_checks.same_seed_gives_the_same_attack_bit_by_bit,
    attack_checks.global_random_state_does_not_matter,
    attack_checks.another_seed_gives_another_attack,
    attack_checks.selection_is_what_was_planned,
    attack_checks.kinds_are_counted_over_the_whole_training_set,
    attack_checks.images_and_labels_outside_the_plan_are_untouched,
    attack_checks.labels_of_poison_are_the_targets_and_those_of_cross_samples_their_own,
    attack_checks.clean_label_poison_changes_no_label,
    attack_checks.planned_work_is_what_implant_counts,
    attack_checks.inputs_are_not_modified,
    attack_checks.triggered_images_are_images,
    attack_checks.trigger_is_deterministic_and_treats_images_one_by_one,
    attack_checks.stored_test_set_is_the_quantised_trigger,
    attack_checks.stored_test_set_holds_exactly_the_images_whose_label_would_change,
    attack_checks.stored_victim_has_the_same_rates_after_loading,
    attack_checks.any_image_size_and_number_of_classes_works,
    *LEARNED,
)


class AttackSuite:
    """Put a registered attack under every check: subclass it in a test file and name the attack.

    Args:
        name: of the attack; the test file imports the module that registers it.
        small: settings that make it affordable on 200 images of 16 pixels; most attacks need none.
        others: field -> other values, for fields of free text.
    """

    name: ClassVar[str]
    small: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    others: ClassVar[Mapping[str, Sequence[Any]]] = MappingProxyType({})

    _subject: ClassVar[Subject]

    @classmethod
    def subject(cls) -> Subject:
        """Shared by all checks of a suite, so that the attack is carried out once."""
        if "_subject" not in cls.__dict__:  # a subclass of a suite is a suite of its own
            cls._subject = Subject(cls.name, cls.small, cls.others)
        return cls._subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_attack(self, check: Check) -> None:
        with one_thread():
            check(self.subject())
