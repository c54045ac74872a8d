"""Every registered sampler under the shipped suite, and wrong ones that it must catch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from superft.testing import sampler_checks
from superft.testing.sampler_checks import Subject
from superft.testing.samplers import CHECKS

Check = Callable[[Subject], None]


@pytest.mark.parametrize("name", sampler_checks.names())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sampler(name: str, check: Check) -> None:
    check(Subject(name))
