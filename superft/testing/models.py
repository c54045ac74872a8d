"""The suite of models: `ModelSuite` in a test file, or any check of it by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from superft.testing import model_checks
from superft.testing.model_checks import Subject
from superft.testing.threads import one_thread

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    model_checks.stages_map_maps_to_maps_that_never_grow,
    model_checks.stages_neck_and_head_are_the_whole_model,
    model_checks.logits_are_float32_per_class,
    model_checks.last_block_is_the_end_of_the_last_stage,
    model_checks.reset_head_draws_from_its_generator_alone,
    model_checks.initial_weights_come_from_the_generator_alone,
    model_checks.training_draws_nothing_from_the_global_generator,
    model_checks.a_state_dict_brings_everything_back,
    model_checks.normalisation_is_inside,
    model_checks.no_stage_overwrites_what_it_received,
    model_checks.eval_mode_is_deterministic_and_treats_images_one_by_one,
    model_checks.every_parameter_learns,
    model_checks.width_scales_the_parameters,
    model_checks.works_at_its_smallest_image_size_and_refuses_smaller,
)


class ModelSuite:
    """Put a registered model under every check: subclass it in a test file and name the model.

    Args:
        name: of the model; the test file imports the module that registers it.
        image_size: side of the images that it is tried on, in pixels.
    """

    name: ClassVar[str]
    image_size: ClassVar[int] = 32

    _subject: ClassVar[Subject]

    @classmethod
    def subject(cls) -> Subject:
        """Shared by all checks of a suite, so that the model is built once where it is only read."""
        if "_subject" not in cls.__dict__:  # a subclass of a suite is a suite of its own
            cls._subject = Subject(cls.name, cls.image_size)
        return cls._subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_model(self, check: Check) -> None:
        with one_thread():
            check(self.subject())
