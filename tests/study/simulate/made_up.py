"""Finished studies whose rows are made up, on disk, for tests of simulated searches."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from study.plan.jobs import Plan
from study.record.files import write_atomically
from study.record.folder import LEDGER_FILE, SPEC_FILE
from tests.study.tiny import AS_PUBLISHED, made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

BEFORE = 0.97
TABLE = ("search.sampler=random", "search.startup=qmc", "search.startup_trials=40", "search.per=all")


def finished_study(directory: Path, *assignments: str, trials: int = 60, noise: float = 0.0) -> Path:
    """A study of super-FT on two attacks: every second setting quasi-random, the others random; its folder.

    Args:
        noise: what the ASR of defense seed 0 lies above, and of any other below the made-up value.
    """
    spec = tiny_spec(
        *("baselines=[]", "attacks=[badnets, blended]", f"search.trials={trials}", *TABLE, *AS_PUBLISHED, *assignments)
    )
    directory.mkdir(parents=True)
    driver = make_driver(spec, directory / LEDGER_FILE)
    run(driver, slots=1, measure=partial(_measure, noise=noise))
    driver.ledger.close()
    write_atomically(directory / SPEC_FILE, spec.to_yaml().encode())
    return directory


def _measure(job: Job, plan: Plan, *, noise: float) -> dict[str, Any]:
    steps = 2 * job.settings["iterations"]
    row = made_up_row(job, plan, clean_accuracy_before=BEFORE, clean_accuracy_before_report=BEFORE)
    row["asr_search"] = min(1.0, max(0.0, row["asr_search"] + (noise if job.cell.defense_seed == 0 else -noise)))
    row |= {"train_size": 1000, "forward_samples": 27 * steps, "backward_samples": 27 * steps}
    return row | {"wall_seconds": 0.5 + 0.01 * steps * math.sqrt(len(job.cell.victim.attack))}
