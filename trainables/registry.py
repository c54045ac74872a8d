"""Names of attacks and defenses -> their classes, and settings checked against a class."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from trainables.settings import rules_of

T = TypeVar("T")


class SettingError(ValueError):
    """A name or setting that does not exist or is out of range; the message is one clear line."""


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are most like ``name``, all that are equally near, in order; none if none is like it."""
    matcher = difflib.SequenceMatcher(b=name)
    likeness: dict[str, float] = {}
    for candidate in sorted(known):
        matcher.set_seq1(candidate)
        likeness[candidate] = matcher.ratio()
    best = max(likeness.values(), default=0.0)
    return [candidate for candidate, ratio in likeness.items() if ratio == best >= 0.5]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest known one (or up to three), and all of them where they are few."""
    known = sorted(known)
    everything, hint = f"known: {', '.join(known)}", did_you_mean(closest(name, known))
    if not hint:
        return everything
    return f"{hint} ({everything})" if len(known) <= 12 else hint


def did_you_mean(names: Sequence[str]) -> str:
    """``did you mean 'a', 'b' or 'c'?``, of the first three; empty for none."""
    quoted = [repr(name) for name in names[:3]]
    return f"did you mean {' or '.join(filter(None, (', '.join(quoted[:-1]), quoted[-1])))}?" if quoted else ""


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
        rules = rules_of(cls)
        for key in settings:
            if key not in rules:
                raise SettingError(f"unknown setting {self.kind}.{name}.{key}: {nearest(key, rules)}")
        try:
            typed = {key: rules[key].typed(value, f"{self.kind}.{name}.{key}") for key, value in settings.items()}
        except ValueError as error:
            raise SettingError(str(error)) from error
        try:
            return cls(**typed)
        except (ValueError, TypeError) as error:
            raise SettingError(f"{self.kind}.{name}: {error}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._loaded = True
