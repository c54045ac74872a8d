"""The suite of samplers: `SamplerSuite` in a test file, or any check of it by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from superft.testing import sampler_checks
from superft.testing.sampler_checks import Subject
from superft.testing.threads import one_thread

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    sampler_checks.two_objectives_are_searched,
    sampler_checks.suggestions_lie_within_their_bounds,
    sampler_checks.start_up_trials_differ_from_each_other,
    sampler_checks.same_seed_gives_the_same_suggestions,
    sampler_checks.a_fresh_process_with_other_string_hashes_agrees,
)


class SamplerSuite:
    """Put a sampler under every check: subclass it in a test file and name the sampler.

    Args:
        name: as ``search.sampler`` names it; the test file imports the module that registers it.
        modules: the names of those modules, which a fresh process of the suite imports too.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()

    _subject: ClassVar[Subject]

    @classmethod
    def subject(cls) -> Subject:
        """One for all checks of a suite."""
        if "_subject" not in cls.__dict__:  # a subclass of a suite is a suite of its own
            cls._subject = Subject(cls.name, cls.modules)
        return cls._subject

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_sampler(self, check: Check) -> None:
        with one_thread():
            check(self.subject())
