"""Studies small enough for tests: specs, and rows made up from the settings instead of measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage

from study.plan.jobs import Plan, make_plan
from study.record.ended import read_ended, write_ended
from study.record.ledger import Ledger
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.spec.load import make_spec
from study.spec.schema import StudySpec
from study.spec.yaml_io import merge_assignments
from trainables.job import Cell, Job

# Runs for real in seconds: models of width 2 on 8-pixel digits, 100 short steps at the published point. After 16 epochs
# (8 are too few for four of the first six seeds) a victim holds its backdoor whatever a machine's arithmetic.
TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "image_size": 8,
    "width": 2,
    "precision": "float32",
    "attacks": ["badnets"],
    "defenses": ["super_ft"],
    "baselines": ["none"],
    "victim": {"epochs": 16, "batch_size": 64, "lr": 0.05},
    "clean_fraction": 0.1,
    "defense": {"super_ft": {"batch_size": 16, "cycles1": 0.1, "cycles2": 0.1}},
    "search": {"trials": 4, "startup_trials": 2, "ranges": {"super_ft": {"iterations": [20, 500]}}},
}
# For rows that are made up: TINY fixes smaller batches and shorter phases to run in no time, and that is not the
# published point.
AS_PUBLISHED = ("defense.super_ft.batch_size=256", "defense.super_ft.cycles1=1", "defense.super_ft.cycles2=1")


def tiny_spec(*assignments: str) -> StudySpec:
    """TINY with ``key=value`` assignments over it."""
    return make_spec(merge_assignments(TINY, assignments))


def made_up_row(job: Job, plan: Plan, **changes: Any) -> dict[str, Any]:
    """What a trial of ``job`` could have found: the same for the same settings and cell."""
    cell = job.cell
    push = math.log10(job.settings.get("lr_max1", 0.01)) + math.log10(job.settings.get("iterations", 100) / 100)
    asr = 1 / (1 + math.exp(4 * push + len(cell.victim.attack) - 7 + 0.1 * cell.seed))
    accuracy = 0.95 - 0.1 / (1 + math.exp(-3 * push))
    row: dict[str, Any] = {
        **cell.columns(),
        "status": "ok",
        "error": None,
        "wall_seconds": 1.0,
    }
    for half in ("", "_search", "_report"):
        row |= {f"asr{half}": asr, f"clean_accuracy{half}": accuracy, f"robust_accuracy{half}": accuracy * (1 - asr)}
    return row | {f"param.{key}": value for key, value in job.settings.items()} | changes


def make_driver(
    spec: StudySpec,
    path: Path,
    storage: BaseStorage | None = None,
    cost: Callable[[Cell, Mapping[str, Any]], float] = lambda cell, settings: 0.0,
    *,
    plan: Plan | None = None,
    keep: Callable[[Job], str] | None = None,
) -> Driver:
    """A driver over the ledger at ``path``, and the ended searches beside it.

    Without a storage it is over an empty one, without a plan over the spec's.

    Args:
        cost: planned E of settings on a cell.
        keep: as for `Driver`.
    """
    plan = plan or make_plan(spec)
    return Driver(
        plan,
        Ledger(path),
        open_searches(plan, storage or InMemoryStorage()),
        cost=cost,
        ended=read_ended(path.parent),
        on_end=partial(write_ended, path.parent),
        keep=keep,
    )


def run(driver: Driver, slots: int = 3, finishes: int | None = None, measure: Callable[..., Any] = made_up_row) -> int:
    """Keep ``slots`` jobs running, the oldest ends first; stop after so many ends. Returns how many ended."""
    running: list[Job] = []
    ended = 0
    while finishes is None or ended < finishes:
        while len(running) < slots and (job := driver.next_job()) is not None:
            running.append(job)
        if not running:
            break
        job = running.pop(0)
        driver.finish(job, measure(job, driver.plan))
        ended += 1
    return ended
