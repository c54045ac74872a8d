"""Looks at Python, at torch and at torchvision."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from study.doctor.finding import Finding, Options
from trainables.storage.messages import one_line

PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that superft is tested with
TORCH = (2, 6)


def look_at_python(_: Options) -> Finding:
    """Whether superft is made for this Python."""
    found = platform.python_version()
    facts = {"version": found, "executable": sys.executable}
    if not PYTHONS[0] <= tuple(sys.version_info[:2]) <= PYTHONS[1]:
        return Finding(
            "fail", f"{found} is none that superft is tested with", "install Python 3.11, 3.12 or 3.13", facts
        )
    return Finding("ok", f"{found} ({sys.executable})", facts=facts)


def look_at_torch(_: Options) -> Finding:
    """Whether torch and torchvision are there, new enough, and fit each other."""
    found = {name: _version(name) for name in ("torch", "torchvision")}
    for name, number in found.items():
        if number is None:
            return Finding("fail", f"{name} is not installed", "pip install torch torchvision", found)
        try:
            import_module(name)
        # Torchvision built for another torch fails with a RuntimeError; a missing library is an OSError.
        except (ImportError, RuntimeError, OSError) as error:
            todo = "install torch and torchvision again, in one command, from one place"
            return Finding("fail", f"{name} {number} cannot be imported: {one_line(error)}", todo, found)
    numbers = str(found["torch"]).split(".")[:2]
    if all(number.isdigit() for number in numbers) and tuple(map(int, numbers)) < TORCH:
        return Finding(
            "fail", f"torch {found['torch']} is older than 2.6", "pip install --upgrade torch torchvision", found
        )
    return Finding("ok", f"{found['torch']}, torchvision {found['torchvision']}", facts=found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
