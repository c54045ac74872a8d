"""``tracking.json``: which run a study is in each tool, and how many of its rows that run holds."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from study.ledger import write_atomically

MARKS_FILE = "tracking.json"


@dataclass(frozen=True)
class Mark:
    """A run in one tool: where it lies, its id there, rows of the ledger sent, whether its end was sent."""

    place: str
    run: str
    rows: int = 0
    ended: bool = False


class Marks:
    """The marks of all tools in one file; safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / MARKS_FILE
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        if self.path.exists():
            with_names = json.loads(self.path.read_text(encoding="utf-8"))
            self._marks = {name: Mark(**mark) for name, mark in with_names.items()}

    def get(self, tool: str, place: str) -> Mark | None:
        """The run in ``tool``; none if it lies elsewhere: a study sent to another server is a new run there."""
        mark = self._marks.get(tool)
        return mark if mark is not None and mark.place == place else None

    def put(self, tool: str, mark: Mark) -> None:
        with self._lock:
            self._marks[tool] = replace(mark)
            text = json.dumps({name: asdict(item) for name, item in self._marks.items()}, indent=1)
            write_atomically(self.path, text.encode())
