"""Does a whole study keep a cluster busy? Raylets with made-up GPUs, trials that sleep, the real engine and search.

    python -m benchmarks.cluster_scale [--nodes 3] [--gpus 4] [--per-gpu 4] [--seconds 15] [--rounds 8]

Nodes are processes of this machine, with more GPUs and CPUs than it has: what is measured is placing, asking and
reporting, with TPE on the journal file, over nodes * gpus * per-gpu slots. `busy` is the share of slot time that trials
slept between the first moment at which all slots did and the last start of a trial, by the trials' own clocks. Starting
the actors (`fill_seconds`) is this machine's work: here all of a cluster's nodes share its processors.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ray import tune

from benchmarks.common import machine, record
from benchmarks.raylets import raylets
from benchmarks.searches import searches_alone
from benchmarks.sleeper import Sleeper
from study.cluster.connect import ray_cluster
from study.plan.jobs import make_plan
from study.plan.slots import Node, Room, share_of
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.record.stopped import Trouble
from study.run.dispatcher import Dispatcher
from study.run.driver import Driver
from study.run.on_tune import run_trials
from study.run.progress import Progress
from study.search.optuna_search import open_searches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=4, help="of each node")
    parser.add_argument("--per-gpu", type=int, default=4, help="trials on one GPU")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a trial")
    parser.add_argument("--rounds", type=int, default=8, help="trials per slot")
    arguments = parser.parse_args()
    slots = arguments.nodes * arguments.gpus * arguments.per_gpu
    plan = make_plan(searches_alone(["badnets"], slots * arguments.rounds))
    cpus = arguments.gpus * arguments.per_gpu
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        raylets(arguments.nodes, cpus, arguments.gpus) as cluster,
        ray_cluster(cluster.address),
        Ledger(Path(folder) / "trials.jsonl") as ledger,
    ):
        driver = Driver(plan, ledger, open_searches(plan, open_storage("journal", Path(folder))))
        room = Room([Node(str(number), cpus, arguments.gpus) for number in range(arguments.nodes)], 1)
        shares = dict.fromkeys(plan.jobs_by_label(), share_of(arguments.per_gpu))
        trouble, started = Trouble("the benchmark"), time.time()
        dispatcher = Dispatcher(driver, Progress(driver, io.StringIO()), room, shares, trouble)
        run_trials(dispatcher, tune.with_parameters(Sleeper, seconds=arguments.seconds))
        trouble.check()
        rows = ledger.rows()
    question = {key: getattr(arguments, key) for key in ("nodes", "gpus", "per_gpu", "seconds", "rounds")}
    row = {**question, "slots": slots, **_busy(rows, slots, started), "load_before": load}
    record("cluster_scale", {**row, "load_after": os.getloadavg()[0], **machine(torch.device("cpu"))})


def _busy(rows: Sequence[Mapping[str, Any]], slots: int, started: float) -> dict[str, Any]:
    """How full the slots were once they had been."""
    events = sorted(itertools.chain.from_iterable(((row["began"], 1), (row["ended"], -1)) for row in rows))
    running = itertools.accumulate(change for _, change in events)
    most, filled = max(zip(running, (-when for when, _ in events), strict=True))
    last = max(row["began"] for row in rows)
    used = sum(max(0.0, min(row["ended"], last) - max(row["began"], -filled)) for row in rows)
    return {
        "finished": len(rows),
        "most_at_once": most,
        "busy": round(used / (slots * (last + filled)), 4),
        "fill_seconds": round(-filled - started, 1),
        "measured_seconds": round(last + filled, 1),
    }


if __name__ == "__main__":
    main()
