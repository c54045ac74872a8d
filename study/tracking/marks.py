"""``tracking.json``: which run a study is in each tool, and how many of its rows that run holds."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from study.record.files import write_atomically

MARKS_FILE = "tracking.json"


@dataclass(frozen=True)
class Mark:
    """A run in one tool: where it lies, its id there, rows of the ledger sent, whether its end was sent."""

    place: str
    run: str
    rows: int = 0
    ended: bool = False


class Home(Protocol):
    """What of a study's folder is needed here: `folder.Folder` or `remote_folder.RemoteFolder`."""

    path: Path
    called: str

    def keep(self, name: str) -> None:
        """Put one file where the study lies, now."""


class Marks:
    """The marks of all tools in one file; safe to use from several threads."""

    def __init__(self, home: Home) -> None:
        self._home, self.path = home, home.path / MARKS_FILE
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        if self.path.exists():
            with_names = json.loads(self.path.read_text(encoding="utf-8"))
            self._marks = {name: Mark(**mark) for name, mark in with_names.items()}

    def get(self, tool: str, place: str) -> Mark | None:
        """The run in ``tool``; none if it lies elsewhere: a study sent to another server is a new run there."""
        mark = self._marks.get(tool)
        return mark if mark is not None and mark.place == place else None

    def take_out(self, numbers: Sequence[int]) -> None:
        """Rows are taken out of the ledger, to run again: what follows them moves up, and every run goes on.

        Args:
            numbers: of the rows, from 0, as they were.
        """
        if numbers:
            for tool, mark in list(self._marks.items()):
                gone = sum(number < mark.rows for number in numbers)
                self.put(tool, replace(mark, rows=mark.rows - gone, ended=False), keep=True)

    def put(self, tool: str, mark: Mark, keep: bool = False) -> None:
        """Write a mark; ``keep``: also for a driver on another machine, to which rows sent since are new."""
        with self._lock:
            self._marks[tool] = mark
            text = json.dumps({name: asdict(item) for name, item in self._marks.items()}, indent=1)
            write_atomically(self.path, text.encode())
            if keep:
                self._home.keep(MARKS_FILE)
