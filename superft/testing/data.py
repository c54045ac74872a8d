"""The suite of data sets: `DataSuite` in a test file, or any check of it by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from superft.testing import data_checks
from superft.testing.data_checks import Subject

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    data_checks.images_are_uint8_squares_with_three_channels,
    data_checks.labels_are_0_to_k_minus_1_and_every_class_has_images,
    data_checks.classes_have_names_of_their_own,
    data_checks.train_and_test_share_no_memory_and_hardly_an_image,
    data_checks.images_have_the_size_that_was_asked_for,
    data_checks.loading_again_gives_the_same_data,
    data_checks.the_fingerprint_is_that_of_the_pixels,
    data_checks.statistics_are_those_of_pixels_in_0_to_1,
    data_checks.too_small_an_image_size_is_refused_in_one_line,
)


class DataSuite:
    """Put a data set under every check: subclass it in a test file and name it. Nothing is downloaded.

    Args:
        name: of a registered source, or ``folder:PATH``; the test file imports the module that registers it.
        root: folder of its files; None: where ``superft`` looks for data (SUPERFT_DATA).
    """

    name: ClassVar[str]
    root: ClassVar[Path | None] = None

    _subject: ClassVar[Subject]

    @classmethod
    def subject(cls) -> Subject:
        """Shared by all checks of a suite, so that the data are read once where they are only looked at."""
        if "_subject" not in cls.__dict__:  # a subclass of a suite is a suite of its own
            cls._subject = Subject(cls.name, cls.root)
        return cls._subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_data(self, check: Check) -> None:
        check(self.subject())
