"""One broken file among the methods costs its own names, and nothing else."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainables.attacks
from tests import foreign
from trainables.attacks.base import ATTACKS
from trainables.plugins.origin import origin
from trainables.registry import Registry, SettingError

GOOD = "from tests.trainables.test_drop_in_files import ROOM\n\n@ROOM.register('{name}')\nclass Good: ...\n"

ROOM: Registry[type] = Registry("method", "trainables.attacks")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A further folder of attacks."""
    monkeypatch.setattr(trainables.attacks, "__path__", [*trainables.attacks.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("trainables.attacks."):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("class Mine(\n    register('mine')", "zz_mine.py, line 1: SyntaxError: '(' was never closed"),
        (
            "import nothing_of_the_sort",
            "zz_mine.py, line 1: ModuleNotFoundError: No module named 'nothing_of_the_sort'",
        ),
    ],
)
def test_a_broken_file_is_named_once_and_only_its_names_are_refused(
    text: str, why: str, room: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (room / "zz_good.py").write_text(GOOD.format(name="good"))
    (room / "zz_mine.py").write_text(text)
    fresh: Registry[type] = Registry("method", "trainables.attacks")
    beside: Registry[type] = Registry("thing", "trainables.attacks")
    globals()["ROOM"] = fresh
    with caplog.at_level(logging.WARNING, "superft.registry"):
        assert fresh.names() == ["good"]
        fresh.names()
        assert beside.names() == []
    assert [record.getMessage() for record in caplog.records] == [f"left out {room / 'zz_mine.py'}: {why}"]
    with pytest.raises(SettingError, match=r"method 'zz_mine' cannot be loaded: zz_mine\.py, line 1") as caught:
        fresh.get("zz_mine")
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingError, match=r"thing 'zz_mine' cannot be loaded: zz_mine\.py, line 1"):
        beside.get("zz_mine")
    with pytest.raises(SettingError, match="unknown method 'other': known: good"):
        fresh.get("other")
    if "register" in text:
        with pytest.raises(SettingError, match="method 'mine' cannot be loaded"):
            fresh.get("mine")


@pytest.mark.usefixtures("_as_before")
def test_a_file_of_ones_own_among_ours_is_keyed_by_its_source(room: Path) -> None:
    (room / "zz_corner.py").write_text(foreign.attack("zz_corner"))
    __import__("trainables.attacks.zz_corner")
    by = origin(ATTACKS, "zz_corner")
    assert by is not None
    assert (by["name"], by["version"]) == ("trainables.attacks.zz_corner", "unversioned")
