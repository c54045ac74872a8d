"""What tuning the detectors found, ``detectors.json``: chosen once, before the first trial of their searches.

A study that is continued goes on with the detectors that it chose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study.record.files import write_atomically
from study.spec.yaml_io import SpecError

DETECTORS_FILE = "detectors.json"
DETECTOR_SETTINGS = 48  # that are judged for each search, the published one among them


@dataclass(frozen=True)
class CellFinding:
    """What a detector leaves out on one cell, by the poison mask: shares in [0, 1], None where nothing is poisoned."""

    attack: str
    seed: int
    defense_seed: int
    tpr: float | None
    fpr: float | None
    auroc_target: float | None

    @property
    def youden(self) -> float | None:
        """Youden's J = TPR - FPR of what is left out, in [-1, 1]."""
        return None if self.tpr is None or self.fpr is None else self.tpr - self.fpr


@dataclass(frozen=True)
class TunedDetector:
    """The detector of one search.

    Args:
        search: its label.
        settings: of the detector, the chosen ones.
        published: of the detector, as its source states them.
        tried: settings that were judged; 0: none could be, so that it stays as published.
        epochs: E of the passes over the training sets.
        cells: what the chosen settings find on the cells that they were chosen by.
        cells_published: likewise the published ones; empty where they were not among those judged.
        error: why none could be judged; None otherwise.
    """

    search: str
    settings: dict[str, Any]
    published: dict[str, Any]
    tried: int
    epochs: float
    cells: tuple[CellFinding, ...] = ()
    cells_published: tuple[CellFinding, ...] = ()
    error: str | None = None


def read_detectors(directory: Path) -> dict[str, TunedDetector]:
    """The detectors that were chosen in a study's folder, by search; none without the file (SpecError: damaged)."""
    path = directory / DETECTORS_FILE
    if not path.exists():
        return {}
    try:
        found = [_tuned(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise SpecError(f"{path} is damaged ({error}); without it, the study tunes its detectors again") from error
    return {one.search: one for one in found}


def write_detectors(directory: Path, tuned: Iterable[TunedDetector]) -> None:
    """Write all that were chosen."""
    write_atomically(directory / DETECTORS_FILE, json.dumps([asdict(one) for one in tuned], indent=1).encode())


def _tuned(item: dict[str, Any]) -> TunedDetector:
    cells = {name: tuple(CellFinding(**cell) for cell in item[name]) for name in ("cells", "cells_published")}
    return TunedDetector(**{**item, **cells})
