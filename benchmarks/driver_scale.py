"""Does the driver keep up? Its own loop (searcher, ledger, front) under a simulated clock, without processes.

    python -m benchmarks.driver_scale [--slots 256] [--trials 5120] [--searches 1] [--seconds 15] [--sampler tpe]
                                      [--history N] [--latency SECONDS]

Trials of a fixed length run on as many slots as asked for; only what the driver itself does takes real time, and
while it does that the clock goes on. `busy` is the share of slot time that trials used between the first fill of all
slots and the last trial that was handed out. The driver's time is processor time of this process, so that other work
on the machine does not count; waiting for the disk is left out with it. At the end the study is opened once more, as
after a crash. `fsyncs` counts the waits for the disk per trial. All made-up results lie on one curve, so that the front
grows with the study: the dearest case for TPE's split into good and bad trials.

With ``--latency`` the storage is a database in which every write takes so long, behind a storage in memory as in a
study with `search.storage`; then the clock is the wall's, since waiting is what is asked about, and `unwritten` counts
the trials that the database still lacks when the last one has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import optuna
import torch
from optuna.storages import BaseStorage, InMemoryStorage

from benchmarks.common import machine, record
from benchmarks.searches import searches_alone
from study.plan.jobs import Plan, make_plan
from study.record.behind import Behind
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from trainables.attacks.base import ATTACKS
from trainables.job import Job

Result = TypeVar("Result")
# Of the first and the last so many trials the mean costs are compared.
WINDOW = 500
WRITES = ("param", "user_attr", "system_attr", "state_values")
QUESTION = ("slots", "trials", "searches", "seconds", "sampler", "history", "latency")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--trials", type=int, default=5120, help="of all searches together")
    parser.add_argument("--searches", type=int, default=1, help="attacks; each has a search of its own")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--history", type=int, help="search.history")
    parser.add_argument("--latency", type=float, help="seconds of each write of a trial to a database")
    arguments = parser.parse_args()
    names = [name for name in ATTACKS.names() if ATTACKS.get(name).implants_backdoor]
    if arguments.searches > len(names):
        parser.error(f"--searches: at most {len(names)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    each = -(-arguments.trials // arguments.searches)
    spec = searches_alone(
        names[: arguments.searches],
        each,
        f"search.sampler={arguments.sampler}",
        *([] if arguments.history is None else [f"search.history={arguments.history}"]),
    )
    plan = make_plan(spec)
    clock = time.process_time if arguments.latency is None else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        database = None if arguments.latency is None else Slow(arguments.latency)
        storage = open_storage("journal", Path(folder)) if database is None else Behind(database)
        driver = open_driver(plan, Path(folder), storage)
        with _counted_fsyncs() as fsyncs:
            run = _simulate(driver, arguments.slots, arguments.seconds, clock)
        run["fsyncs"] = round(fsyncs[0] / run["finished"], 2)
        driver.ledger.close()
        if isinstance(storage, Behind):
            run["unwritten"] = storage.waiting
            storage.close()
        started = time.perf_counter()
        storage = open_storage("journal", Path(folder)) if database is None else Behind(database)
        again = open_driver(plan, Path(folder), storage)
        restart = time.perf_counter() - started
        if not again.finished or again.has_work():
            raise RuntimeError("the study that was opened again is not the finished one")
    question = {key: getattr(arguments, key) for key in QUESTION}
    row = {**question, **run, "restart_seconds": round(restart, 2)}
    record("driver_scale", {**row, **machine(torch.device("cpu"))})


def open_driver(plan: Plan, folder: Path, storage: BaseStorage) -> Driver:
    return Driver(plan, Ledger(folder / "trials.jsonl"), open_searches(plan, storage))


class Slow(InMemoryStorage):
    """A database in memory; each write of a trial takes ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        for name in ("create_new_trial", *(f"set_trial_{what}" for what in WRITES)):
            setattr(self, name, _after(seconds, getattr(self, name)))


def _after(seconds: float, work: Callable[..., Result]) -> Callable[..., Result]:
    def later(*arguments: Any, **named: Any) -> Result:
        time.sleep(seconds)
        return work(*arguments, **named)

    return later


@contextlib.contextmanager
def _counted_fsyncs() -> Iterator[list[int]]:
    count, fsync = [0], os.fsync

    def counting(file: Any) -> None:
        count[0] += 1
        fsync(file)

    with mock.patch.object(os, "fsync", counting):
        yield count


def _simulate(driver: Driver, slots: int, seconds: float, now: Callable[[], float]) -> dict[str, Any]:
    clock = spent = last = 0.0
    filled: float | None = None
    running: list[tuple[float, float, int, Job]] = []
    trials, costs, draw = list[tuple[float, float]](), list[float](), random.Random(0)
    memory = list[int]()
    while True:
        while len(running) < slots:
            job, took = _timed(driver.next_job, now)
            clock, spent = clock + took, spent + took
            if job is None:
                break
            last = clock
            heapq.heappush(running, (clock + seconds * draw.uniform(0.9, 1.1), clock, len(costs) + len(running), job))
        if filled is None and len(running) == slots:
            filled = clock
        if not running:
            break
        end, start, _, job = heapq.heappop(running)
        trials.append((start, end))
        clock = max(clock, end)
        _, took = _timed(partial(driver.finish, job, made_up_row(job, driver.plan)), now)
        clock, spent = clock + took, spent + took
        costs.append(spent)
        spent = 0.0
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    if filled is None or filled >= last:
        raise SystemExit("the slots were never all in use: fewer --slots, or more --trials")
    used = sum(max(0.0, min(end, last) - max(start, filled)) for start, end in trials)
    window = min(WINDOW, len(costs) // 4)
    return {
        "finished": len(costs),
        "busy": round(used / (slots * (last - filled)), 4),
        "driver_ms_first": round(1e3 * statistics.mean(costs[:window]), 2),
        "driver_ms_last": round(1e3 * statistics.mean(costs[-window:-slots] or costs[-window:]), 2),
        "memory_mb_first": memory[window],
        "memory_mb_last": memory[-1],
        "simulated_hours": round(clock / 3600, 2),
    }


def _timed(work: Callable[[], Result], now: Callable[[], float]) -> tuple[Result, float]:
    began = now()
    return work(), now() - began


def made_up_row(job: Job, plan: Plan) -> dict[str, Any]:
    """As wide as a real one; its rates follow from the settings, so that a searcher has something to learn."""
    rate = min(1.0, 0.05 / job.settings["lr_max1"])
    cell = job.cell
    row: dict[str, Any] = {"attack": cell.victim.attack, "defense": cell.defense, "dataset": "digits", "model": "none"}
    row |= {"seed": 0, "status": "ok", "wall_seconds": 15.0, "train_size": 1000, "forward_samples": 1000}
    row |= {"backward_samples": 1000, "asr_search": rate, "clean_accuracy_search": 0.95 - 0.2 * (1.0 - rate) ** 2}
    row |= {f"filler_{number}": number / 7 for number in range(60)}
    return row | {f"param.{key}": value for key, value in job.settings.items()}


if __name__ == "__main__":
    main()
