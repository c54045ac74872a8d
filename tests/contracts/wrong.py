"""Help for tests that put a wrong example under a suite: registered for one test, and gone after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

Check = Callable[[Any], None]


def named(checks: Sequence[Check], name: str) -> Check:
    """The check of that name."""
    return next(check for check in checks if check.__name__ == name)


def complaint(check: Check, subject: Any) -> str:
    """What a check says of a wrong subject, which it must not let pass."""
    with pytest.raises(AssertionError) as caught:
        check(subject)
    return str(caught.value)
