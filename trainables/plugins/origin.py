"""Who made what is registered, and from which source: for the keys of victims, and for rows."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from trainables.plugins.load import OURS, UNVERSIONED, plugin_of
from trainables.plugins.modules import digest, spec_of
from trainables.plugins.released import RELEASED
from trainables.registry import Registry


def ships(registry: Registry[Any], name: str) -> bool:
    """Whether what is registered as ``name`` is part of superft as it was released."""
    ours = registry.module_of(name).partition(".")[0] in OURS
    return ours and name in RELEASED.get(registry.kind, ())


def origin(registry: Registry[Any], name: str) -> dict[str, str] | None:
    """Who made what is registered as ``name``, and from which source; None: it ships with superft.

    Returns:
        ``name`` and ``version`` of the plug-in (of a file within superft: its module), and ``source``, the digest of
        the module that registered it with all that this imports of its own package.
    """
    if ships(registry, name):
        return None
    module = registry.module_of(name)
    source = _source_of(module)
    plugin = plugin_of(module)
    if plugin is not None:
        return {"name": plugin.name, "version": plugin.version, "source": source}
    return {"name": module, "version": UNVERSIONED, "source": source}


def used(things: Iterable[tuple[Registry[Any], str]]) -> str:
    """Names and versions of those who made these things, without superft itself: text for a row."""
    found = []
    for registry, name in things:
        if name in registry and (by := origin(registry, name)) is not None:
            version = by["version"] if by["version"] != UNVERSIONED else f"{UNVERSIONED}+{by['source']}"
            found.append(f"{by['name']} {version}")
    return "; ".join(dict.fromkeys(found))


@cache
def _source_of(module: str) -> str:
    """Digest of a module's file and of those of its own package that it imports, at whatever depth."""
    files, waiting = dict[str, Path](), [module]
    while waiting:
        name = waiting.pop()
        found = spec_of(name)
        if found is None or found.origin is None or name in files or not found.origin.endswith(".py"):
            continue
        files[name] = Path(found.origin)
        waiting += [item for item in _imports(files[name], name, found) if _is_kin(item, module)]
    return digest(files[name] for name in sorted(files))


def _is_kin(name: str, module: str) -> bool:
    """Whether a module counts as a part of ``module``: of the same package; within superft, of the same folder."""
    top, room = module.partition(".")[0], module.rpartition(".")[0]
    return name.startswith(f"{room}.") if top in OURS else name.partition(".")[0] == top


def _imports(file: Path, name: str, spec: ModuleSpec) -> Iterator[str]:
    """Dotted names of all that a file imports, also within functions."""
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
