"""What the engine adds to a trial: no-op trials of a fixed length through the real driver, searcher, ledger and Tune.

    python -m benchmarks.engine_overhead [--trials 300] [--seconds 2] [--slots 2]

Overhead per trial = slot seconds per finished trial at steady state (after the first tenth) minus the trial's length.
The search is the default one (TPE on the journal file), the trainable sleeps and returns a row of the usual size. What
a trial itself spends outside training and evaluation is in its row (``seconds_setup``, and what ``wall_seconds`` has
beyond the three phases); `benchmarks.gpu` has its share. The goal for both together is 5 % of a trial of 10 s.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from benchmarks.common import machine, record
from benchmarks.searches import searches_alone
from benchmarks.sleeper import Sleeper
from study.cluster.connect import ray_cluster
from study.plan.jobs import make_plan
from study.plan.slots import Node, Room
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.record.stopped import Trouble
from study.run.dispatcher import Dispatcher
from study.run.driver import Driver
from study.run.on_tune import run_trials
from study.run.progress import Progress
from study.search.optuna_search import open_searches


class Timed(Progress):
    """Keeps the time at which each trial was recorded."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver, io.StringIO())
        self.finished: list[float] = []

    def trial(self, row: Any) -> None:
        self.finished.append(time.perf_counter())
        super().trial(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--slots", type=int, default=2)
    arguments = parser.parse_args()
    plan = make_plan(searches_alone(["badnets"], arguments.trials))
    with tempfile.TemporaryDirectory() as folder, ray_cluster(None), Ledger(Path(folder) / "trials.jsonl") as ledger:
        driver = Driver(plan, ledger, open_searches(plan, open_storage("journal", Path(folder))))
        progress = Timed(driver)
        started = time.perf_counter()
        trainable = tune.with_parameters(Sleeper, seconds=arguments.seconds)
        trouble, room = Trouble("the benchmark"), Room([Node("here", arguments.slots)], 1)
        shares = dict.fromkeys(plan.jobs_by_label(), 0.0)
        run_trials(Dispatcher(driver, progress, room, shares, trouble), trainable)
        trouble.check()
        wall = time.perf_counter() - started
    skipped = max(2, arguments.trials // 10)
    overhead = _slot_seconds(progress.finished[skipped:], arguments.slots) - arguments.seconds
    last_tenth = progress.finished[-skipped:]
    record(
        "engine_overhead",
        {
            "trials": len(progress.finished),
            "trial_seconds": arguments.seconds,
            "slots": arguments.slots,
            "overhead_seconds_per_trial": overhead,
            "share_of_a_trial_of_10_seconds": overhead / (10.0 + overhead),
            "overhead_seconds_last_tenth": _slot_seconds(last_tenth, arguments.slots) - arguments.seconds,
            "first_trial_after_seconds": progress.finished[0] - started,
            "wall_seconds": wall,
            **machine(torch.device("cpu")),
        },
    )


def _slot_seconds(finished: list[float], slots: int) -> float:
    return (finished[-1] - finished[0]) * slots / (len(finished) - 1)


if __name__ == "__main__":
    main()
