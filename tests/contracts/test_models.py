"""Every registered model under the shipped suite, and wrong models that it must catch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from superft.testing import model_checks
from superft.testing.model_checks import Subject
from superft.testing.models import CHECKS

Check = Callable[[Subject], None]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


@pytest.mark.parametrize("subject", model_checks.names(), indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_model(subject: Subject, check: Check) -> None:
    check(subject)
