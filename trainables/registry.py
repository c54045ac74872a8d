"""Everything that has a name (attacks, defenses, models, data sources, ...), and settings checked against a class."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Generic, TypeVar, cast

from trainables.settings import any_of, rules_of

log = logging.getLogger("superft.registry")

T = TypeVar("T")
X = TypeVar("X")


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
    return f"did you mean {any_of(quoted)}?" if quoted else ""


_REGISTRIES: list[Registry[Any]] = []
_BROKEN: dict[str, Broken] = {}  # by file: several registries look through one package, and one of them tells


@dataclass(frozen=True)
class Broken:
    """A file of a room that could not be imported.

    Args:
        file: where it lies.
        text: its content, to look for the names that it would have registered.
        why: the error in one line, with file and line.
    """

    file: str
    text: str
    why: str


class Registry(Generic[T]):
    """The things of one kind by name, found by importing every module of a package once.

    One new file there with one `register` (or `add`) is enough. A package of somebody else's does the same from
    outside. A file that cannot be imported is named in a warning, and costs only its own names.

    Args:
        kind: what they are, for messages (``attack``).
        package: where our modules lie.
        check: refuses, with a SettingError, what cannot be used under the name it is given.
        adopt: enters what a module of the package offers without a call of its own; gets the module and its last name.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        check: Callable[[str, T], None] | None = None,
        adopt: Callable[[ModuleType, str], None] | None = None,
    ) -> None:
        self.kind, self.package = kind, package
        self._check, self._adopt = check, adopt
        self._home = _caller(__name__)
        self._things: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        self._broken: list[Broken] = []
        self._loaded = False
        _REGISTRIES.append(self)

    @staticmethod
    def all() -> list[Registry[Any]]:
        """All registries that there are."""
        return list(_REGISTRIES)

    def register(self, name: str) -> Callable[[X], X]:
        """Decorator: make a class or function known as ``name``."""

        def enter(thing: X) -> X:
            return cast(X, self.add(name, cast(T, thing)))

        return enter

    def add(self, name: str, thing: T, by: str | None = None) -> T:
        """Make ``thing`` known as ``name``; it is handed back.

        Args:
            by: name of the module that it comes from; default the one that calls.

        Raises:
            SettingError: the name is taken, or the thing cannot be used.
        """
        module = by or _caller(__name__, self._home)
        if not module.startswith(f"{self.package}."):
            self._load()  # else a name of ours that was not looked at yet could be taken
        if name in self._things:
            by = self._modules[name]
            where = f" (by {by} and {module})" if by != module else ""
            raise SettingError(f"{self.kind} {name!r} is registered twice{where}; choose another name")
        if self._check is not None:
            self._check(name, thing)
        self._things[name], self._modules[name] = thing, module
        if isinstance(thing, type):
            thing.name = name  # type: ignore[attr-defined]
        return thing

    def names(self) -> list[str]:
        """All names that are offered, sorted; a class with ``offered = False`` is found by `get` alone."""
        self._load()
        return sorted(name for name, thing in self._things.items() if getattr(thing, "offered", True))

    def items(self) -> list[tuple[str, T]]:
        """Names and things, sorted by name."""
        return [(name, self._things[name]) for name in self.names()]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._things

    def get(self, name: str) -> T:
        """What is called ``name``.

        Raises:
            SettingError: there is none; the message names the nearest, or the file that should have brought it.
        """
        self._load()
        if name not in self._things:
            for broken in self._broken:
                if f'"{name}"' in broken.text or f"'{name}'" in broken.text or Path(broken.file).stem == name:
                    raise SettingError(f"{self.kind} {name!r} cannot be loaded: {broken.why}")
            raise SettingError(f"unknown {self.kind} {name!r}: {nearest(name, self._things)}")
        return self._things[name]

    def module_of(self, name: str) -> str:
        """Name of the module that registered ``name``."""
        self.get(name)
        return self._modules[name]

    def remove(self, name: str) -> None:
        """Take ``name`` out, if it is there."""
        self._things.pop(name, None)
        self._modules.pop(name, None)

    def forget(self, module: str) -> None:
        """Take out what ``module`` (or a module within it) has registered."""
        mine = [name for name, by in self._modules.items() if by == module or by.startswith(f"{module}.")]
        for name in mine:
            self.remove(name)

    def create(self: Registry[type[X]], name: str, settings: Mapping[str, Any] | None = None) -> X:
        """An instance of the dataclass called ``name``, with ``settings`` over its defaults.

        Raises:
            SettingError: unknown name or key, or a value that the class refuses.
        """
        cls, settings = self.get(name), settings or {}
        rules = rules_of(cls)
        for key in settings:
            if key not in rules:
                raise self.unknown_setting(name, key)
        try:
            typed = {key: rules[key].typed(value, f"{self.kind}.{name}.{key}") for key, value in settings.items()}
        except ValueError as error:
            raise SettingError(str(error)) from error
        try:
            return cls(**typed)
        except (ValueError, TypeError) as error:
            raise SettingError(f"{self.kind}.{name}: {error}") from error

    def unknown_setting(self: Registry[type[X]], name: str, key: str, label: str | None = None) -> SettingError:
        """The error about a setting that the class called ``name`` has not: what took its place, or the nearest.

        ``label``: under which the setting was given, where that is not the name.
        """
        cls = self.get(name)
        replaced: Mapping[str, str] = getattr(cls, "replaced", {})
        hint = replaced[key] if key in replaced else nearest(str(key), rules_of(cls))
        return SettingError(f"unknown setting {self.kind}.{label or name}.{key}: {hint}")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first: the modules themselves may ask for names
        package = importlib.import_module(self.package)
        for found in pkgutil.iter_modules(package.__path__):
            name = f"{self.package}.{found.name}"
            if _BROKEN and (known := _BROKEN.get(_file_of(name))) is not None:
                self._broken.append(known)
                continue
            try:
                module = importlib.import_module(name)
                if self._adopt is not None:
                    self._adopt(module, found.name)
            except Exception as error:  # noqa: BLE001 - whatever one file raises, the others go on working
                for registry in _REGISTRIES:  # one file may register things of several kinds
                    registry.forget(name)
                file = _file_of(name)
                broken = Broken(file, _text(file), f"{explain(error, file)}")
                self._broken.append(broken)
                _BROKEN[file] = broken
                log.warning("left out %s: %s", file, broken.why)


def check_method(kind: str, name: str, cls: Any, base: type) -> None:
    """Refuse a class that cannot hold the settings of a method.

    Raises:
        SettingError: it is not one of ``base``, no frozen dataclass of its own, or leaves a method undefined.
    """
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise SettingError(f"{kind} {name!r}: must be a class of {base.__name__}, got {cls!r}")
    parameters = cls.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise SettingError(f"{kind} {name!r}: its class needs @dataclass(frozen=True), below the registering line")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise SettingError(f"{kind} {name!r}: its class does not define {', '.join(missing)}")


def explain(error: BaseException, file: str) -> str:
    """An import that failed, in one line with the line in ``file`` where it did."""
    what = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or file).name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    at = f"{Path(file).name}, line {lines[-1]}: " if lines else f"{Path(file).name}: "
    return f"{at}{what if isinstance(error, SettingError) else f'{type(error).__name__}: {what}'}"


def _file_of(module: str) -> str:
    return str(getattr(importlib.util.find_spec(module), "origin", None) or module)


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _caller(*inner: str) -> str:
    """Name of the module that called, beyond the modules named."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in inner:
        frame = frame.f_back
    return "__main__" if frame is None else str(frame.f_globals.get("__name__"))
