"""Loading plug-ins: packages and files of somebody else's whose `register` calls add attacks, defenses, models, ...

They come by the entry-point group ``superft.plugins`` of an installed package, by ``--plugin MODULE``, or by
``plugins: [...]`` in a spec, where MODULE is a module's name or the path of a file or folder.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainables.plugins.modules import PluginError, digest, files_of, import_from, located, place_of
from trainables.registry import Registry, explain

log = logging.getLogger("superft.plugins")

GROUP = "superft.plugins"
OURS = ("superft", "study", "search_spaces", "trainables")
UNVERSIONED = "unversioned"


@dataclass(frozen=True)
class Plugin:
    """A loaded plug-in.

    Args:
        module: as it is imported.
        name, version: of the distribution it comes from; without one the module's name and ``unversioned+HASH``.
        source: digest of its Python files.
        path: the file or folder of its topmost module, where that is on this machine alone; None: it is installed.
    """

    module: str
    name: str
    version: str
    source: str
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


_loaded: dict[str, Plugin] = {}
_installed: dict[str, Plugin | None] = {}


def load(modules: Iterable[str | Mapping[str, Any]]) -> list[Plugin]:
    """Import plug-ins, each once per process, and say what they are.

    Args:
        modules: each a module's name, the path of a file or folder, or what a stored spec says of one: a mapping with
            ``module``, and perhaps ``path``, ``name``, ``version`` and ``source``.

    Raises:
        PluginError: one cannot be found, or its import fails; names it and the line.
    """
    return [_load(item) for item in modules]


def load_installed() -> dict[str, Plugin]:
    """The plug-ins of installed packages, by module; one that cannot be imported is left out with a warning."""
    for point in _entry_points():
        if point.module not in _installed:
            try:
                _installed[point.module] = _load(point.module, point.dist)
            except PluginError as error:
                _installed[point.module] = None
                log.warning("left out an installed %s", error)
    return {module: plugin for module, plugin in _installed.items() if plugin is not None}


@cache
def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def loaded() -> list[Plugin]:
    """All plug-ins of this process, in the order in which they were loaded."""
    return list(_loaded.values())


def plugin_of(module: str) -> Plugin | None:
    """The loaded plug-in that a module belongs to."""
    return next((p for p in _loaded.values() if p.module.partition(".")[0] == module.partition(".")[0]), None)


def _load(item: str | Mapping[str, Any], distribution: importlib.metadata.Distribution | None = None) -> Plugin:
    told: Mapping[str, Any] = {} if isinstance(item, str) else item
    plain = isinstance(item, str)
    module, path = located(str(item) if plain else str(told["module"]), told.get("path"), here=plain)
    if module in _loaded:
        return _loaded[module]
    if module.partition(".")[0] in OURS:
        raise PluginError(f"plug-in {module}: a part of superft is no plug-in")
    try:
        if path is not None:
            import_from(module.partition(".")[0], path)
        importlib.import_module(module)
    except PluginError:  # the name is in use
        raise
    except Exception as error:  # whatever its code raises, the user gets one line
        for registry in Registry.all():
            registry.forget(module)
        sys.modules.pop(module, None)
        raise PluginError(f"plug-in {module}: {_why(error, module, path)}") from error
    plugin = _describe(module, told, distribution)
    _loaded[module] = plugin
    return plugin


def _why(error: BaseException, module: str, path: Path | None) -> str:
    """Why an import failed, with the last line of the plug-in's own that it came from."""
    own = [str(file) for file in files_of(module.partition(".")[0], path)]
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return explain(error, frames[-1] if frames else (own[0] if own else module))


def _describe(
    module: str, told: Mapping[str, Any], distribution: importlib.metadata.Distribution | None = None
) -> Plugin:
    top = module.partition(".")[0]
    place, files = place_of(top), files_of(top)
    source = digest(files, place)
    distribution = distribution or _distribution(top, place)
    name, version = (None, None) if distribution is None else (distribution.metadata["Name"], distribution.version)
    if name is None and told.get("source") == source and told.get("name"):
        # A package that was installed where the study was submitted, and lies as plain source here: the same code.
        name, version = str(told["name"]), str(told["version"])
    local = place is not None and not _is_installed(place)
    return Plugin(
        module,
        name or top,
        version or f"{UNVERSIONED}+{source}",
        source,
        str(place.resolve()) if local and place else None,
    )


def _distribution(top: str, place: Path | None) -> importlib.metadata.Distribution | None:
    """The installed distribution that ``top`` belongs to.

    The module must be the very one that it installed (or, editable, points to), not a file of the same name elsewhere.
    """
    for name in _distributions().get(top, ()):
        distribution = importlib.metadata.distribution(name)
        if place is None or _belongs(place, distribution):
            return distribution
    return None


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _belongs(place: Path, distribution: importlib.metadata.Distribution) -> bool:
    if _is_installed(place):
        return True
    direct = distribution.read_text("direct_url.json") or ""
    found = re.search(r'"url":\s*"file://([^"]+)"', direct)
    return found is not None and "editable" in direct and place.resolve().is_relative_to(Path(found[1]).resolve())


def _is_installed(place: Path) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in place.parts)
