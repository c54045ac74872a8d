"""Names of attacks and defenses -> their classes, and settings checked against a class."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class SettingError(ValueError):
    """A name or setting that does not exist or is out of range; the message is one clear line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one, and all of them where they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    everything = f"known: {', '.join(known)}"
    if not close:
        return everything
    return f"did you mean {close[0]!r}?" + (f" ({everything})" if len(known) <= 12 else "")


class Registry(Generic[T]):
    """The classes of one kind, found by importing every module of a package once.

    Args:
        kind: what they are, for messages (``attack``).
        package: where their modules lie; a new file there is enough to be found.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make the class known as ``name``."""

        def enter(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise SettingError(f"{self.kind} {name!r} is registered twice")
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class called ``name``.

        Raises:
            SettingError: there is none; the message names the nearest.
        """
        self._load()
        if name not in self._classes:
            raise SettingError(f"unknown {self.kind} {name!r}: {nearest(name, self._classes)}")
        return self._classes[name]

    def create(self, name: str, settings: Mapping[str, Any] | None = None) -> T:
        """An instance with ``settings`` over its defaults.

        Raises:
            SettingError: unknown name or key, or a value that the class refuses.
        """
        cls, settings = self.get(name), settings or {}
        known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        for key in settings:
            if key not in known:
                raise SettingError(f"unknown setting {self.kind}.{name}.{key}: {nearest(key, known)}")
        hints = get_type_hints(cls)
        checked = {key: _typed(value, hints[key], f"{self.kind}.{name}.{key}") for key, value in settings.items()}
        try:
            return cls(**checked)
        except (ValueError, TypeError) as error:
            raise SettingError(f"{self.kind}.{name}: {error}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True


def _typed(value: Any, hint: Any, what: str) -> Any:
    """``value`` as the annotation ``hint`` wants it: int, float, bool, str, Literal, and unions of these.

    Raises:
        SettingError: it is of another type, not a finite number, or not among the literals.
    """
    if get_origin(hint) in (Union, UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        given = [option for option in options if option is not type(None)]
        if len(given) == 1:
            return _typed(value, given[0], what)
        return value
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise SettingError(f"{what} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SettingError(f"{what} must be a number, got {value!r}")
        return float(value)
    if hint in (int, bool, str) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        wanted = {int: "a whole number", bool: "true or false", str: "text"}[hint]
        raise SettingError(f"{what} must be {wanted}, got {value!r}")
    return value
