"""What a study stands on can fail: its folder, its database, the store. Nothing of that is a trial's own failure.

Such a failure ends the run in one line, without a row for the trials it hit; the same command goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError

from trainables.storage.messages import one_line

P = ParamSpec("P")
R = TypeVar("R")

# sysexits.h, EX_TEMPFAIL: "the user is invited to retry". A scheduler can tell it from bad input (2).
TRY_LATER = 75
FAILURES = (OSError, StorageInternalError)


class StudyStoppedError(Exception):
    """The study cannot go on for now; the message says why, in one line."""


class Trouble:
    """The first such failure of a run, reported from wherever it was met (also from another thread).

    Args:
        what: is driven, in words.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.cause: str | None = None

    def report(self, cause: str) -> None:
        """Note it; later ones follow from the first."""
        self.cause = self.cause or " ".join(cause.split())

    def noticing(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """Reports, instead of raising, what fails in ``function``: inside of Ray Tune it would be a trial's error."""

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except FAILURES as error:
                self.report(_text(self.what, error))
                return None

        return wrapped

    def check(self, before: str = "") -> None:
        """Raise StudyStoppedError if there is any; ``before`` begins its message."""
        if self.cause is not None:
            raise StudyStoppedError(f"{before}{self.cause}")


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """Say that ``what`` failed as StudyStoppedError, in one line."""
    try:
        yield
    except FAILURES as error:
        raise StudyStoppedError(_text(what, error)) from error


def _text(what: str, error: Exception) -> str:
    return f"{what}: {getattr(error, 'strerror', None) or one_line(error)}"
