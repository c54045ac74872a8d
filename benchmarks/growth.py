"""How time and memory grow with images, classes, pixels and trials: decoding, a victim, a trial, the report, a search.

    python -m benchmarks.growth [--stages decode open ...] [--images 100000] [--trials 5000] [--repeats 3]
    python -m benchmarks.growth --table

Every point is a process of its own, on made-up data. Seconds are of the processor, so that other work on the machine
counts little; what making the data and importing the modules takes is left out. Memory is the most that the process
held of its own beyond what it had before, sampled every 10 ms; pages of files that are mapped are not in it, since the
system takes them back when it needs them. The exponent of a cost is the slope of its logarithm over that of the size,
by least squares over the largest two decades; 1 is linear. Points that take less than 20 s are repeated.

`decode` reads a zip (`decode_folder` a folder) of PNG files of noise, and then `open` does, in another process. A
victim (BadNets and its clean model, `STEPS` steps each, batches of 64) is made, measured and stored; a trial is `STEPS`
steps of fine-tuning and its evaluation: both grow with the test set, a tenth of the training set. `report` writes a
finished study; `report_dearest` is one whose settings are all on the front. `search_*` asks a sampler and records the
results.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import made_up
from benchmarks.common import RESULTS, machine, record, summary

STEPS = 20
SHORT = 20.0  # seconds
IMAGES, CLASSES, PIXELS = (1000, 10_000, 100_000, 1_000_000), (2, 10, 100, 1000), (16, 32, 64, 128, 224)
USUAL = {"images": 2000, "classes": 10, "pixels": 16}
MANY = 40_000  # images along the classes, so that the test set does not grow with them
# stage -> axis -> its sizes; those of images and trials end at what is asked for.
SWEEPS: dict[str, dict[str, Sequence[int]]] = {
    "decode": {"images": IMAGES, "classes": CLASSES, "pixels": PIXELS},
    "decode_folder": {"images": IMAGES[:-1]},
    "open": {"images": IMAGES, "classes": CLASSES, "pixels": PIXELS},
    "victim": {"images": IMAGES, "classes": CLASSES, "pixels": PIXELS},
    "trial": {"images": IMAGES, "classes": CLASSES, "pixels": PIXELS},
    "report": {"trials": (10, 100, 1000, 5000, 10_000)},
    "report_dearest": {"trials": (10, 100, 1000, 5000, 10_000)},
    "search_random": {"trials": (10, 100, 1000, 10_000)},
    "search_nsga2": {"trials": (10, 100, 1000, 10_000)},
    "search_tpe": {"trials": (10, 100, 1000, 10_000)},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="*", choices=tuple(SWEEPS), default=[one for one in SWEEPS if one != "open"])
    parser.add_argument("--axes", nargs="*", default=["images", "classes", "pixels", "trials"])
    parser.add_argument("--images", type=int, default=100_000, help="at most")
    parser.add_argument("--trials", type=int, default=5000, help="at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what was measured last, and measure nothing")
    parser.add_argument("--point", nargs=3, metavar=("STAGE", "SIZES", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        stage, sizes, folder = arguments.point
        print(json.dumps(measure(stage, json.loads(sizes), Path(folder))))
        return
    most = {"images": arguments.images, "trials": arguments.trials}
    for stage, axis in () if arguments.table else _asked(arguments.stages, arguments.axes):
        sizes = [size for size in SWEEPS[stage][axis] if size <= most.get(axis, size)]
        for one, found in sweep(stage, axis, sizes, arguments.repeats).items():
            record("growth", {"stage": one, "axis": axis, **found, **machine(torch.device("cpu"))})
    print(table())


def _asked(stages: Sequence[str], axes: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((stage, axis) for stage in stages for axis in SWEEPS[stage] if axis in axes)


def sweep(stage: str, axis: str, sizes: Sequence[int], repeats: int) -> dict[str, dict[str, Any]]:
    """The points of one stage along one axis, with the exponents of their costs; of what follows on it, likewise."""
    points: dict[str, list[dict[str, Any]]] = {}
    for size in sizes:
        asked = {**USUAL, **({"images": MANY} if axis == "classes" else {}), axis: size}
        runs = [_run(stage, asked)]
        while len(runs) < repeats and runs[0][stage]["wall_seconds"] < SHORT:
            runs.append(_run(stage, asked))
        for one in runs[0]:
            keys = [key for key in runs[0][one] if key != "wall_seconds"]
            point = {key: summary([round(run[one][key], 4) for run in runs]) for key in keys}
            points.setdefault(one, []).append({"size": size, **point})
            print(one, axis, size, {key: point[key]["median"] for key in keys}, file=sys.stderr, flush=True)
    found = {}
    for one, costs in points.items():
        seconds, memory = (
            exponent([(point["size"], point[key]["median"]) for point in costs], least)
            for key, least in (("seconds", 0.0), ("memory_mb", 1.0))
        )
        found[one] = {"points": costs, "exponent_seconds": seconds, "exponent_memory": memory}
    return found


def exponent(costs: Sequence[tuple[int, float]], least: float = 0.0) -> float | None:
    """The slope of log cost over log size, by least squares over the largest two decades; None below two points.

    Costs up to ``least`` are left out: a process takes memory in lumps.
    """
    largest = max((size for size, _ in costs), default=0)
    chosen = [(math.log(size), math.log(cost)) for size, cost in costs if 100 * size >= largest and cost > least]
    if len(chosen) < 2:
        return None
    return round(statistics.linear_regression(*zip(*chosen, strict=True)).slope, 2)


def table() -> str:
    """The last row of every stage and axis, in Markdown."""
    file, last = RESULTS / "growth.jsonl", dict[tuple[str, str], dict[str, Any]]()
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        last[row["stage"], row["axis"]] = row
    lines = ["| work | along | processor seconds | memory, MB | exponents | n |", "|---|---|---|---|---|---|"]
    order = {one: place for place, one in enumerate(_asked(list(SWEEPS), ["images", "classes", "pixels", "trials"]))}
    for (stage, axis), row in sorted(last.items(), key=lambda item: order.get(item[0], len(order))):
        points = row["points"]
        seconds = ", ".join(f"{point['size']:,}: {_spread(point['seconds'])}" for point in points)
        memory = ", ".join(f"{point['memory_mb']['median']:.0f}" for point in points)
        repeats = sorted({point["seconds"]["n"] for point in points})
        many = "-".join(map(str, dict.fromkeys((repeats[0], repeats[-1]))))
        both = ", ".join("–" if one is None else str(one) for one in (row["exponent_seconds"], row["exponent_memory"]))
        lines.append(f"| {stage.replace('_', ', ')} | {axis} | {seconds} | {memory} | {both} | {many} |")
    return "\n".join(lines)


def _spread(one: Mapping[str, float]) -> str:
    return f"{one['median']:.3g}" + (f" ({one['min']:.3g} to {one['max']:.3g})" if one["n"] > 1 else "")


def _run(stage: str, sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """One point in a process of its own, and what follows on it, in another."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for one in (stage, *(("open",) if stage == "decode" else ())):
            command = [sys.executable, "-m", "benchmarks.growth", "--point", one, json.dumps(sizes), folder]
            ran = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[one] = json.loads(ran.stdout.splitlines()[-1])
    return found


def measure(stage: str, sizes: Mapping[str, int], folder: Path) -> dict[str, float]:
    """Processor seconds and memory of a stage, in this process."""
    torch.set_num_threads(1)
    work = PREPARE[stage](folder, **{key: sizes[key] for key in (("trials",) if "trials" in sizes else USUAL)})
    wall, processor = time.perf_counter(), time.process_time()
    with _watched_memory() as held:
        more = work()
    seconds = time.process_time() - processor
    memory = max(held) - held[0]
    return {"seconds": seconds, "memory_mb": memory, "wall_seconds": time.perf_counter() - wall, **more}


@contextmanager
def _watched_memory() -> Iterator[list[float]]:
    """The process's own memory in MB, every 10 ms of the block; one number before it."""
    held, done = [_own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            held.append(_own_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        done.set()
        thread.join()
        held.append(_own_memory())


def _own_memory() -> float:
    """Memory that belongs to no file, in MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has of its own")


Work = Callable[[], dict[str, float]]


def _decoding(folder: Path, images: int, classes: int, pixels: int, ending: str = ".zip") -> Work:
    from trainables.data.load import load_dataset

    path, few = folder / f"images{ending}", folder / f"few{ending}"
    if not path.exists():
        made_up.image_files(path, images, classes, pixels)
        made_up.image_files(few, 100, 2, 16)
    load_dataset(f"folder:{few}", root=folder / "data")  # imports, and the first use of everything

    def work() -> dict[str, float]:
        data = load_dataset(f"folder:{path}", image_size=pixels, root=folder / "data")
        assert len(data.train) == images
        return {}

    return work


def _victim(folder: Path, images: int, classes: int, pixels: int) -> Work:
    from trainables.storage.store import Store
    from trainables.victims.make import obtain_victim
    from trainables.victims.spec import VictimSpec

    def prepared(images: int, classes: int, pixels: int) -> Work:
        spec = VictimSpec("badnets", "airbench_cnn", made_up.recipe(images, STEPS), width=4)
        data, store = made_up.dataset(images, classes, pixels), Store(folder / f"store-{images}")

        def work() -> dict[str, float]:
            obtain_victim(spec, data, store, torch.device("cpu"))
            return {}

        return work

    prepared(400, 2, 16)()
    return prepared(images, classes, pixels)


def _trial(folder: Path, images: int, classes: int, pixels: int) -> Work:
    from trainables.data.load import DataSource
    from trainables.job import Cell
    from trainables.storage.store import Store
    from trainables.trial import run_trial
    from trainables.victims.make import obtain_victim
    from trainables.victims.spec import VictimSpec

    spec = VictimSpec("badnets", "airbench_cnn", made_up.recipe(images, 1), width=4)
    data, device = made_up.dataset(images, classes, pixels), torch.device("cpu")
    victim = obtain_victim(spec, data, Store(folder / "store"), device)
    cell = Cell(DataSource("made-up"), spec, "ft", 0.2)

    def work(steps: int = STEPS) -> dict[str, float]:
        settings = {"steps": steps, "batch_size": made_up.BATCH}
        result = run_trial(cell, settings, dataset=data, victim=victim, device=device)
        assert result.metrics["asr"] is not None
        return {}

    work(1)
    return work


def _report(folder: Path, trials: int, dearest: bool = False) -> Work:
    from study.report.write import write_report

    def work() -> dict[str, float]:
        page = write_report(folder / "study")
        return {"page_mb": page.stat().st_size / 2**20}

    write_report(made_up.finished_study(folder / "few", 10, dearest=dearest))
    made_up.finished_study(folder / "study", trials, dearest=dearest)
    return work


def _search(folder: Path, trials: int, sampler: str) -> Work:
    from benchmarks.driver_scale import made_up_row, open_driver
    from benchmarks.searches import searches_alone
    from study.plan.jobs import make_plan
    from study.record.optuna_storage import open_storage

    def work(trials: int = trials, name: str = "study") -> dict[str, float]:
        plan = make_plan(searches_alone(["badnets"], trials, f"search.sampler={sampler}"))
        (folder / name).mkdir()
        driver = open_driver(plan, folder / name, open_storage("journal", folder / name))
        finished = 0
        while (job := driver.next_job()) is not None:
            driver.finish(job, made_up_row(job, plan))
            finished += 1
        driver.ledger.close()
        assert finished == trials
        return {}

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work(10, "few")
    return work


def _with(prepare: Callable[..., Work], **how: Any) -> Callable[..., Work]:
    return lambda folder, **sizes: prepare(folder, **sizes, **how)


PREPARE: dict[str, Callable[..., Work]] = {
    "decode": _decoding,
    "decode_folder": _with(_decoding, ending=""),
    "open": _decoding,
    "victim": _victim,
    "trial": _trial,
    "report": _report,
    "report_dearest": _with(_report, dearest=True),
    **{f"search_{sampler}": _with(_search, sampler=sampler) for sampler in ("random", "nsga2", "tpe")},
}


if __name__ == "__main__":
    main()
