"""Which repaired models a study keeps in its store, and under what names: the key ``keep`` of a spec.

A store is shared. So a study draws a name for itself once, kept in its folder, and writes and removes nothing but files
under that name which are of its own trials.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from study.record.files import write_atomically
from study.record.ledger import Key, key_as_name, row_key
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.job import Job, Role
from trainables.storage.kept import kept_name

KEPT_FILE = "kept.json"
# Of models that may come to lie on a front.
ON_FRONTS: tuple[Role, ...] = ("search",)


@dataclass(frozen=True)
class Keeping:
    """What a study keeps.

    Args:
        what: ``front`` or ``all``.
        name: of the study within the store.
    """

    what: Literal["front", "all"]
    name: str

    def name_of(self, job: Job) -> str:
        """Name in the store of the file of a job's model; empty: it is not kept."""
        if self.what == "front" and job.role not in ON_FRONTS:
            return ""
        return self._name(job.key)

    def names_in(self, rows: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Every file that this study may have written for these rows, whether they tell of it or not."""
        return {self._name(row_key(row)): row for row in rows}

    def _name(self, key: Key) -> str:
        return kept_name(self.name, key_as_name(key))


def keeping_of(directory: Path, spec: StudySpec) -> Keeping | None:
    """What the study in ``directory`` keeps; None: nothing. Draws its name in the store if it has none yet.

    Raises:
        SpecError: the file with that name is damaged.
    """
    if spec.keep == "none":
        return None
    path = directory / KEPT_FILE
    if not path.is_file():
        drawn = f"{spec.name}-{uuid.uuid4().hex[:12]}"
        write_atomically(path, (json.dumps({"name": drawn}) + "\n").encode())
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is damaged ({error}); remove it, and models are kept under another name") from error
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise SpecError(f"{path} is damaged (name {str(name)[:60]!r}); remove it, and models are kept under another")
    return Keeping(spec.keep, name)
