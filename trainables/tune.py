"""The Tune class Trainable around `trial.run_trial`: an actor keeps data and victims over trials, one report each."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from trainables.store import Store
from trainables.trial import Cell, Workbench


def bench(store: str, cpus: int) -> Workbench:
    """The workbench of this process, on the GPU that Ray gave it, else on ``cpus`` threads."""
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(cpus)
    on_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
    return Workbench(Store(Path(store)), torch.device("cuda" if on_gpu else "cpu"))


class TrialTrainable(tune.Trainable):
    """One trial per `step`; the configuration names a cell and the settings of its defense.

    Config keys: ``cell`` (position in ``cells``), ``settings``.
    """

    def setup(self, config: dict[str, Any], cells: tuple[Cell, ...] = (), store: str = "", cpus: int = 1) -> None:
        self.cells = cells
        self.bench = bench(store, cpus)
        self.reset_config(config)

    def step(self) -> dict[str, Any]:
        result = self.bench.run(self.cells[self.job["cell"]], self.job["settings"])
        # As one string: Tune would flatten, copy and log every column of it.
        return {"row": json.dumps(result.row(), allow_nan=False), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.job = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def train_victim(cell: Cell, store: str, cpus: int) -> dict[str, Any]:
    """Ray task: obtain the cell's victim; what people want to know of it, JSON-able."""
    place, notes = bench(store, cpus), _Notes()
    logger = logging.getLogger("superft.store")
    logger.addHandler(notes)
    found = place.store.path(place.victim_name(cell)).is_dir()
    try:
        victim = place.victim(cell)
    finally:
        logger.removeHandler(notes)
    return {
        "name": victim.name,
        "attack": cell.victim.attack,
        "seed": cell.seed,
        "implanted": victim.implanted,
        "asr_base": victim.asr_base,
        "seconds": victim.facts["seconds"],
        "found": found and not notes.lines,
        "notes": notes.lines,
        **dataclasses.asdict(victim.evaluation.full),
    }


class _Notes(logging.Handler):
    """Keeps what the store warns of (a damaged file), since nobody reads the log of a Ray worker."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
