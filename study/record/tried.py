"""What a rule of choice tried, in a ledger: a row per candidate and model; what was cut off goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.space import fingerprint
from study.record.columns import PARAM, SCHEMA
from study.record.folder import LEDGER_FILE
from study.record.ledger import Ledger
from trainables.choice.base import Attempt, Candidate
from trainables.choice.elsewhere import Tried
from trainables.training.loop import Counters
from trainables.training.movement import Movement

WORK = tuple(item.name for item in dataclasses.fields(Counters))
MOVED = tuple(item.name for item in dataclasses.fields(Movement))


class TriedRows:
    """The rows of a folder, which knows all models that candidates were tried on there.

    A model is called after its content (``untouched-1f2e3d4c``, ``patch-5a6b7c8d``): rows of another model, of other
    images or of another seed are never taken for its own. No row has a column ``asr``: a planted ASR is not one.

    Args:
        folder: made if missing; the ledger in it is repaired, as a study's.
    """

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger(folder / LEDGER_FILE)
        self._seed = 0

    @property
    def damaged(self) -> list[str]:
        """What of the ledger was set aside, in words."""
        return self._ledger.damaged

    def of(self, on: str) -> dict[Candidate, Tried]:
        """What was tried on the model called ``on``; no repaired models are kept."""
        return {
            found.attempt.candidate: found
            for row in self._ledger.rows()
            if row["attack"] == on
            if (found := _tried(row))
        }

    def add(self, on: str, tried: Tried, triggered: int | None = None) -> None:
        """Keep a row, on the disk before it returns; once.

        Args:
            triggered: images of ``tried.obeyed``, of a planted copy.
        """
        attempt, candidate = tried.attempt, tried.attempt.candidate
        name = f"{candidate.defense} {fingerprint(candidate.settings)}"
        if self._ledger.has(name, on, self._seed):
            return
        seen = dict.fromkeys(MOVED) if attempt.movement is None else dataclasses.asdict(attempt.movement)
        row = {
            "schema": SCHEMA,
            "trial": name,
            "attack": on,
            "seed": self._seed,
            "defense": candidate.defense,
            "status": "diverged" if attempt.diverged else "ok",
            **{f"{PARAM}{key}": value for key, value in candidate.settings.items()},
            "obeyed": tried.obeyed,
            "triggered": triggered,
            "right": attempt.right,
            "validation_images": attempt.images,
            **seen,
            **dataclasses.asdict(attempt.work),
            "looking": dataclasses.asdict(tried.looking),
            "wall_seconds": attempt.seconds,
        }
        self._ledger.append(row)

    def close(self) -> None:
        """Give the file back."""
        self._ledger.close()


def _tried(row: Mapping[str, Any]) -> Tried:
    settings = {key.removeprefix(PARAM): value for key, value in row.items() if key.startswith(PARAM)}
    seen = None if row["displacement"] is None else Movement(**{key: row[key] for key in MOVED})
    attempt = Attempt(
        Candidate(row["defense"], settings),
        None,
        row["right"],
        row["validation_images"],
        seen,
        Counters(**{key: row[key] for key in WORK}),
        diverged=row["status"] == "diverged",
        seconds=row["wall_seconds"],
    )
    return Tried(attempt, row["obeyed"], Counters(**row["looking"]))
