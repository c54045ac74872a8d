"""The plug-ins of a study: those that its spec names, and the installed ones whose things it uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search_spaces.space import SPACES
from study.spec.methods import METHOD
from study.spec.samplers import SAMPLERS
from study.spec.trackers import TRACKERS
from trainables.attacks.base import ATTACKS
from trainables.data.sources.base import SOURCES
from trainables.defenses.base import DEFENSES
from trainables.models.build import MODELS
from trainables.plugins.load import Plugin, load, load_installed, plugin_of
from trainables.registry import Registry


def load_plugins(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Load the plug-ins of a spec's raw settings, and those of installed packages.

    Returns:
        What the stored spec says of each that the study names or uses: ``module, name, version, source, path``.

    Raises:
        ValueError: ``plugins`` is no list of names or of what a stored spec says.
        PluginError: one of those named cannot be loaded.
    """
    given = settings.get("plugins") or []
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) or _is_stored(item) for item in given):
        raise ValueError(f"plugins must be a list of modules or files such as [my_package, mine.py], got {given!r}")
    found = {plugin.module: plugin for plugin in load(given)}
    if installed := load_installed():
        for registry, name in _things(settings):
            plugin = plugin_of(registry.module_of(name)) if name in registry else None
            if plugin is not None and plugin.module in installed:
                found.setdefault(plugin.module, plugin)
    return [dataclasses.asdict(plugin) for plugin in found.values()]


def as_plugins(stored: Sequence[Any]) -> list[Plugin]:
    """The plug-ins of a resolved spec, as the workers need them."""
    return [Plugin(item.module, item.name, item.version, item.source, item.path) for item in stored]


def changed_plugins(before: Mapping[str, Any], now: Sequence[Any]) -> list[str]:
    """One line for each plug-in whose code is another one than when the study was last run.

    Args:
        before: the stored spec as it was written.
        now: plug-ins of the resolved spec.
    """
    old = {item["module"]: item for item in before.get("plugins") or [] if _is_stored(item)}
    return [
        f"plug-in {item.module} changed: {old[item.module].get('name')} {old[item.module].get('version')} "
        f"({old[item.module].get('source')}) -> {item.name} {item.version} ({item.source}); column plugins says which "
        "rows are of which"
        for item in now
        if item.module in old and old[item.module].get("source") != item.source
    ]


def _is_stored(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("module"), str)


def _things(settings: Mapping[str, Any]) -> Iterator[tuple[Registry[Any], str]]:
    """What a spec's raw settings name, as far as they are well formed."""

    def names(value: Any) -> list[str]:
        return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str)]

    def named_by(given: Any, label: str) -> Any:
        """The defense that a label of the user's own stands for; None where it is a name itself."""
        own = given.get(label) if isinstance(given, Mapping) else None
        return own.get(METHOD) if isinstance(own, Mapping) else None

    def inner(part: str, key: str) -> Any:
        return settings[part].get(key) if isinstance(settings.get(part), Mapping) else None

    labels = [label for key in ("defenses", "baselines") for label in names(settings.get(key) or [])]
    methods = [named_by(settings.get("defense"), label) or label for label in labels]
    for registry, value in (
        (ATTACKS, settings.get("attacks")),
        (DEFENSES, methods),
        (SPACES, methods),
        (MODELS, settings.get("model")),
        (SOURCES, settings.get("dataset")),
        (SOURCES, inner("scenario", "upstream")),
        (SAMPLERS, inner("search", "sampler")),
        (TRACKERS, settings.get("tracking")),
    ):
        yield from ((registry, name) for name in names(value))
