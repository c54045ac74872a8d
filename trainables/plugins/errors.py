"""What a method raised, in one line that says where in its own file that was."""

from __future__ import annotations

import traceback
from pathlib import Path

from trainables.plugins.load import loaded
from trainables.plugins.modules import place_of
from trainables.registry import SettingError

ROOMS = ("attacks", "defenses", "models", "data")


class MethodError(Exception):
    """An exception that a method raised by itself, in one line with the place; another try would raise it again."""


def where(error: BaseException) -> str:
    """`` (mine.py:55 in repair)``: the last line of a method's own file that an exception passed, else nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [place for plugin in loaded() if (place := place_of(plugin.module.partition(".")[0]))]
    rooms = [Path(__file__).parent.parent / room for room in ROOMS]
    for candidates in (places, rooms):
        for frame in reversed(frames):
            file = Path(frame.filename)
            if any(file == place or file.is_relative_to(place) for place in candidates):
                return f" ({file.name}:{frame.lineno} in {frame.name})"
    return ""


def told(error: BaseException) -> str:
    """An exception of a method in one line: its type, its message, and the line it came from."""
    text = " ".join(str(error).split())
    known = isinstance(error, MethodError | SettingError)
    return text if known else f"{type(error).__name__}: {text}{where(error)}"
