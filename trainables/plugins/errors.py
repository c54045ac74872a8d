"""What a method raised, in one line that says where in its own file that was."""

from __future__ import annotations

import traceback
from pathlib import Path

from trainables.plugins.load import OURS, loaded
from trainables.plugins.modules import place_of
from trainables.plugins.origin import ships
from trainables.plugins.released import RELEASED
from trainables.registry import Registry, SettingError

ROOMS = ("attacks", "defenses", "models", "data")


class MethodError(Exception):
    """An exception that a method raised by itself, in one line with the place; another try would raise it again."""


def where(error: BaseException) -> str:
    """`` (mine.py:55 in repair)``: the last line of a method's own file that an exception passed, else nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    for places in (_foreign_places(), [Path(__file__).parent.parent / room for room in ROOMS]):
        for frame in reversed(frames):
            file = Path(frame.filename)
            if any(file.is_relative_to(place) for place in places):
                return f" ({file.name}:{frame.lineno} in {frame.name})"
    return ""


def of_plugin(error: BaseException) -> str | None:
    """An exception that passed code which does not ship with superft, in one line; None: it is ours to explain."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    places = _foreign_places()
    return told(error) if any(file.is_relative_to(place) for file in files for place in places) else None


def _foreign_places() -> list[Path]:
    """Files, and folders of packages, of plug-ins and of other methods that do not ship with superft."""
    modules = {
        registry.module_of(name)
        for registry in Registry.all()
        for name in (registry.names() if registry.kind in RELEASED else ())
        if not ships(registry, name)
    }
    modules |= {plugin.module for plugin in loaded()}
    tops = {module if module.partition(".")[0] in OURS else module.partition(".")[0] for module in modules}
    return [place for top in sorted(tops) if (place := place_of(top)) is not None]


def told(error: BaseException) -> str:
    """An exception of a method in one line: its type, its message, and the line it came from."""
    text = " ".join(str(error).split())
    known = isinstance(error, MethodError | SettingError)
    return text if known else f"{type(error).__name__}: {text}{where(error)}"
