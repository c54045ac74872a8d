"""How bad input is refused: one exception of the right kind, its message one line."""

from __future__ import annotations

from collections.abc import Callable


def refusal(call: Callable[[], object], *kinds: type[Exception]) -> str | None:
    """The message by which ``call`` is refused, None if it is not; other exceptions than ``kinds`` pass through."""
    try:
        call()
    except kinds as error:
        message = str(error)
        assert "\n" not in message, f"a refusal must be one line, got {message!r}"
        return message
    return None
