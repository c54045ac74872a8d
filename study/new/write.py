"""The files that somebody starts from who adds an attack, a defense, a model or a data set: `superft new`."""

from __future__ import annotations

import importlib.util
import keyword
from importlib import resources
from pathlib import Path
from typing import Any

from trainables.attacks.base import ATTACKS
from trainables.data.sources.base import SOURCES
from trainables.defenses.base import DEFENSES
from trainables.models.build import MODELS
from trainables.registry import Registry, SettingError

# Kind -> the suite of `superft.testing` that its test file inherits, and the module the suite is in.
SUITES = {
    "attack": ("attacks", "AttackSuite"),
    "defense": ("defenses", "DefenseSuite"),
    "model": ("models", "ModelSuite"),
    "data": ("data", "DataSuite"),
}
TEST = '''"""{title} under the suite of every {kind}: pytest test_{name}.py"""

import {name}  # noqa: F401 - registers it
from superft.testing.{module} import {suite}


class Test{title}({suite}):
    name = "{name}"
'''


def write_start(kind: str, name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into ``folder``: a small working example of its kind, to be changed.

    Args:
        kind: ``attack``, ``defense``, ``model`` or ``data``.
        name: under which it is registered, and of its module.

    Raises:
        SettingError: no name of a module, one that an installed module has, or a file that exists.
    """
    _check_name(kind, name)
    module, suite = SUITES[kind]
    title = "".join(part.capitalize() for part in name.split("_"))
    template = (resources.files("study.new") / "templates" / f"{kind}.py").read_text(encoding="utf-8")
    start = template.replace(f"my_{kind}", name).replace(f"My{kind.capitalize()}", title)
    start = start.replace(f"MY_{kind.upper()}", name.upper())
    texts = {
        folder / f"{name}.py": start,
        folder / f"test_{name}.py": TEST.format(title=title, kind=kind, name=name, module=module, suite=suite),
    }
    for path in texts:
        if path.exists():
            raise SettingError(f"{path} exists and is left as it is; choose another name or remove it")
    if importlib.util.find_spec(name) is not None:
        raise SettingError(
            f"{name} is the name of a module that is installed, which {name}.py would hide; choose another"
        )
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _check_name(kind: str, name: str) -> None:
    if not (name.isidentifier() and name == name.lower() and name.isascii()) or keyword.iskeyword(name):
        raise SettingError(f"name must be lower-case letters, digits and _, and start with a letter, got {name!r}")
    registries: tuple[Registry[Any], ...] = (ATTACKS, DEFENSES, MODELS, SOURCES)
    for known, registry in zip(SUITES, registries, strict=True):
        if known == kind and name in registry:
            raise SettingError(f"{registry.kind} {name!r} exists; choose another name")
