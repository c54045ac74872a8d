"""Where the Python code of a plug-in lies, how it is imported from there, and its digest."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

from trainables.registry import SettingError


class PluginError(SettingError):
    """A plug-in that cannot be loaded or does not keep a contract; the message is one clear line."""


def located(item: str, told: str | None, *, here: bool = True) -> tuple[str, Path | None]:
    """Module and, where Python would not find it by itself, the path of its topmost package or file.

    Args:
        item: a module's name, or the path of a file or folder.
        told: path that a stored spec gives for it.
        here: whether it may lie in the working folder.

    Raises:
        PluginError: there is no such module or file.
    """
    if item.endswith(".py") or os.sep in item:
        path = Path(item).expanduser().resolve()
        if not path.exists():
            raise PluginError(f"plug-in {item}: no such file")
        return _module_name(path.stem if path.is_file() else path.name, item), path
    _module_name(item, item)
    top = item.partition(".")[0]
    if top in sys.modules:
        return item, None
    if told is not None and Path(told).exists():
        return item, Path(told)
    if spec_of(top) is not None:
        return item, None
    for path in (Path(f"{top}.py"), Path(top)) if here else ():
        if path.is_file() or any(path.rglob("*.py")):
            return item, path.resolve()
    before = f" or at {told}, where it was" if told is not None else ""
    place = f", and none lies in {Path.cwd()}" if here else ""
    raise PluginError(f"plug-in {item}: no module of that name is installed{place}{before}; name its file or module")


def _module_name(name: str, item: str) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        raise PluginError(f"plug-in {item}: {name!r} is no name of a Python module")
    return name


def import_from(top: str, path: Path) -> None:
    """Make the module ``top`` that of ``path``, a file or the folder of a package."""
    if top in sys.modules:
        there = place_of(top)
        if there != path:
            raise PluginError(f"plug-in {path}: a module called {top!r} is already in use ({there}); rename the file")
        return
    start = path if path.is_file() else path / "__init__.py"
    if start.is_file():
        inside = None if path.is_file() else [str(path)]
        spec = importlib.util.spec_from_file_location(top, start, submodule_search_locations=inside)
        assert spec is not None
        assert spec.loader is not None
    else:
        spec = ModuleSpec(top, None, is_package=True)
        spec.submodule_search_locations = [str(path)]
    module = importlib.util.module_from_spec(spec)
    sys.modules[top] = module
    if spec.loader is not None:
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[top]
            raise


def files_of(top: str, path: Path | None = None) -> list[Path]:
    """The Python files of a topmost module, sorted."""
    place = path or place_of(top)
    if place is None:
        return []
    return [place] if place.is_file() else sorted(place.rglob("*.py"))


def place_of(top: str) -> Path | None:
    """The file of a topmost module, or the folder of a package."""
    spec = spec_of(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def spec_of(name: str) -> ModuleSpec | None:
    """How a module is found: of an imported one as it was, of another one as it would be; None: not at all."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def digest(files: Iterable[Path], root: Path | None = None) -> str:
    """Digest of Python files: of their names below ``root`` and their content."""
    total = hashlib.blake2b(digest_size=6)
    for file in files:
        name = file.relative_to(root).as_posix() if root is not None and root.is_dir() else file.name
        total.update(f"{name}\0".encode())
        total.update(hashlib.blake2b(file.read_bytes()).digest())
    return total.hexdigest()
