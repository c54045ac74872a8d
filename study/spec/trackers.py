"""Tracking tools by name. The spec checks the name; each tool is one file of ``study.tracking``, or a plug-in's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trainables.registry import Registry
from trainables.storage.remote import Place

Class = TypeVar("Class", bound=type)


def _nothing(directory: Place) -> None:
    """A tool without an account or a server needs no check."""


@dataclass(frozen=True)
class TrackingTool:
    """A registered tool.

    Args:
        description: one line for ``superft list trackers``.
        make: (spec, home) -> `study.tracking.follower.Tracker`.
        module: that must be installed for it.
        extra: of superft that brings the module; None: the module is installed by its own name.
        check: refuses, with a SpecError, a study in this folder that could not be logged (no login, no server).
    """

    description: str
    make: Callable[..., Any]
    module: str
    extra: str | None = None
    check: Callable[[Place], None] = _nothing


TRACKERS: Registry[TrackingTool] = Registry("tracking tool", "study.tracking")


def register(
    name: str,
    description: str,
    *,
    module: str,
    extra: str | None = None,
    check: Callable[[Place], None] = _nothing,
) -> Callable[[Class], Class]:
    """Class decorator: make a tracker known as ``name``; see `TrackingTool`."""

    def enter(cls: Class) -> Class:
        TRACKERS.add(name, TrackingTool(description, cls, module, extra, check))
        return cls

    return enter
