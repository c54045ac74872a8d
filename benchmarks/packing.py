"""Trials per hour of one device that 1, 2, 4 and 8 processes share, and how many should.

    python -m benchmarks.packing cifar10.zip [--processes 1 2 4 8] [--steps 1000] [--batch 256] [--trials 2]

One BadNets victim is trained (recipe ``--recipe``), then every process runs trials of super-fine-tuning on it, with
their evaluation, all starting together after a warm-up trial each. On a GPU each number of processes is measured twice:
taking turns on the device, and through NVIDIA's MPS where ``nvidia-cuda-mps-control`` is installed. On a CPU they share
the cores. ``pick`` is the fewest processes within 3 % of the best rate: what ``resources.gpus_per_trial: auto`` should
come to. Needs torch and torchvision alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, record, summary
from benchmarks.task import Task, make_victim, photographs, run_super_ft, task_of
from trainables.machine.cores import usable_cores
from trainables.training.recipes import RECIPES
from trainables.victims.victim import Victim

MPS = "nvidia-cuda-mps-control"
GOOD_ENOUGH = 0.97  # of the best rate: fewer processes take less memory, and each trial ends sooner
PATIENCE = 1800.0  # seconds a process waits for the others' warm-up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder or zip of image folders")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--trials", type=int, default=2, help="of each process")
    parser.add_argument("--recipe", default="fast", choices=RECIPES, help="of the victim")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--per-class", type=int, help="use only so many training images of every class")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    task = task_of(photographs(arguments.data, arguments.per_class), RECIPES[arguments.recipe], arguments.width)
    question = {key: getattr(arguments, key) for key in ("steps", "batch", "trials", "width")}
    victim = make_victim(task, device)
    record("packing", {**question, **measure(task, victim, device, arguments.processes, question), **machine(device)})


def measure(
    task: Task, victim: Victim, device: torch.device, counts: Sequence[int], question: dict[str, int]
) -> dict[str, Any]:
    """Rates by number of processes, with and without MPS.

    Args:
        question: ``steps`` and ``batch`` of a trial, ``trials`` of each process.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.pt"
        torch.save((task, victim), file)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what this process held is free for the others
        found["in_turns" if device.type == "cuda" else "shared"] = _rates(file, device, counts, question)
        sides = list(found)
        if device.type == "cuda" and shutil.which(MPS):  # in default compute mode this process may keep its context
            try:
                with _mps(Path(folder)):
                    found["mps"] = _rates(file, device, counts, question)
                    sides.append("mps")
            except (OSError, subprocess.SubprocessError) as error:  # what is measured stays, and its row
                found.setdefault("mps", {"failed": f"no MPS server could be had: {error}"})
    for name in sides:
        hourly = {int(count): rate["trials_per_hour"] for count, rate in found[name].items()}
        found[f"pick_{name}"], found[f"gain_{name}"] = pick(hourly), gain(hourly)
    return found


def gain(hourly: dict[int, float]) -> float | None:
    """The best rate over that of the fewest processes; None where those failed."""
    alone = hourly[min(hourly)]
    return round(max(hourly.values()) / alone, 3) if alone else None


def pick(hourly: dict[int, float]) -> int | None:
    """The fewest processes whose trials per hour come close to the best; None where all failed."""
    if not (best := max(hourly.values())):
        return None
    return min(count for count, rate in hourly.items() if rate >= GOOD_ENOUGH * best)


def _rates(file: Path, device: torch.device, counts: Sequence[int], question: dict[str, int]) -> dict[str, Any]:
    return {str(count): _rate(file, device, count, question) for count in counts}


def _rate(file: Path, device: torch.device, count: int, question: dict[str, int]) -> dict[str, Any]:
    """What ``count`` processes get done together."""
    context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
    barrier, results = context.Barrier(count), context.Queue()
    threads = max(1, usable_cores() // count)
    workers = [
        context.Process(target=_work, args=(file, str(device), threads, question, barrier, results), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    if not _all_ended_well(workers):
        return {"trials_per_hour": 0.0, "failed": "a process ended early; its message is above (out of memory?)"}
    spans, seconds, memory = list[tuple[float, float]](), list[float](), list[int]()
    for _ in workers:
        start, end, trials, peak = results.get(timeout=60)
        spans.append((start, end))
        seconds += trials
        memory.append(peak)
    elapsed = max(end for _, end in spans) - min(start for start, _ in spans)
    return {
        "trials_per_hour": round(3600 * len(seconds) / elapsed, 2),
        "trial_seconds": summary(seconds),
        "peak_memory_mb": max(memory) >> 20,
        "threads": threads,
    }


def _all_ended_well(workers: Sequence[BaseProcess]) -> bool:
    """Wait for the processes; when one fails the others, which wait for it, are ended."""
    running = list(workers)
    while running:
        wait([worker.sentinel for worker in running])
        running = [worker for worker in running if worker.is_alive()]
        if any(worker.exitcode for worker in workers):
            for worker in running:
                worker.terminate()
                worker.join()
            return False
    return True


def _work(file: Path, device_name: str, threads: int, question: dict[str, int], barrier: Barrier, results: Any) -> None:
    """One process: a warm-up trial, then the measured ones when all are ready."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    task, victim = torch.load(file, weights_only=False)  # written by this very benchmark, into its own folder
    run_super_ft(task, victim, device, steps=min(20, question["steps"]), batch_size=question["batch"])
    barrier.wait(PATIENCE)
    start, seconds, peak = time.monotonic(), list[float](), 0
    for _ in range(question["trials"]):
        trial = run_super_ft(task, victim, device, steps=question["steps"], batch_size=question["batch"])
        seconds.append(trial.wall_seconds)
        peak = max(peak, trial.peak_memory_bytes)
    results.put((start, time.monotonic(), seconds, peak))


@contextmanager
def _mps(folder: Path) -> Iterator[None]:
    """An MPS server of our own within the block; processes started in it use it."""
    names = {"CUDA_MPS_PIPE_DIRECTORY": folder / "mps", "CUDA_MPS_LOG_DIRECTORY": folder / "mps-log"}
    before = {name: os.environ.get(name) for name in names}
    for name, path in names.items():
        path.mkdir()
        os.environ[name] = str(path)
    try:
        subprocess.run([MPS, "-d"], check=True, timeout=60)
        try:
            yield
        finally:
            subprocess.run([MPS], input="quit\n", text=True, check=True, timeout=120)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    main()
