"""Where the time of ``superft run`` goes: the quickstart study in a temporary folder, seconds by phase.

    python -m benchmarks.quickstart [--recipe quickstart] [--set search.trials=4]

``trials`` is split into what the trials themselves say they spent on setup, repair and evaluation, summed over the
slots, and the rest, in which a slot had no trial or Tune passed one on. Imports are those of the driver; the workers'
own are in the slots' rest and in the victims.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPORT = ["write_trigger_figures", "write_report"]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time counted to the phase."""

        def run(*arguments: Any, **settings: Any) -> Any:
            with self.phase(name):
                return work(*arguments, **settings)

        return run

    def timed_block(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """A context manager whose start and end are phases."""

        @contextmanager
        def run(*arguments: Any, **settings: Any) -> Iterator[Any]:
            block = work(*arguments, **settings)
            with self.phase("ray_start"):
                entered = block.__enter__()
            try:
                yield entered
            finally:
                with self.phase("ray_stop"):
                    block.__exit__(None, None, None)

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the study")
    arguments = parser.parse_args()
    clock, started = Clock(), time.perf_counter()
    with clock.phase("imports"):  # part of the question, so not at the top
        import optuna
        import torch

        from benchmarks.common import machine, record
        from study.plan.slots import count_slots
        from study.record.folder import LEDGER_FILE
        from study.record.ledger import Ledger
        from study.spec.load import load_spec

        engine: Any = importlib.import_module("study.run.engine")  # its names are wrapped below
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    slots = list[int]()

    def trials(dispatcher: Any, trainable: Any) -> None:
        largest = max(dispatcher.shares.values(), default=0.0)
        slots.append(count_slots(dispatcher.room.nodes, dispatcher.room.cpus, largest))
        run_trials(dispatcher, trainable)

    run_trials = clock.timed("trials", engine.run_trials)
    engine.run_trials = trials
    engine.ray_cluster = clock.timed_block(engine.ray_cluster)
    phases = {"victims": ["make_victims"], "measuring": ["measure_kinds"], "report": REPORT}
    for phase, names in phases.items():
        for name in names:
            setattr(engine, name, clock.timed(phase, getattr(engine, name)))
    with tempfile.TemporaryDirectory() as folder:
        spec = load_spec(arguments.recipe, [*arguments.set, f"store={folder}/store"])
        outcome = engine.run_study(spec, Path(folder) / "study")
        wall = time.perf_counter() - started
        with Ledger(Path(folder) / "study" / LEDGER_FILE) as ledger:
            rows = ledger.rows()
    parts = {part: sum(row[f"seconds_{part}"] for row in rows) for part in ("setup", "repair", "evaluate")}
    parts["own_rest"] = sum(row["wall_seconds"] for row in rows) - sum(parts.values())
    of_slots = slots[0] * clock.seconds["trials"]
    parts["no_trial"] = of_slots - sum(parts.values())
    clock.seconds["rest"] = wall - sum(clock.seconds.values())
    record(
        "quickstart",
        {
            "study": spec.name,
            "changes": arguments.set,
            "state": outcome.state,
            "trials": len(rows),
            "slots": slots[0],
            "wall_seconds": round(wall, 1),
            "seconds": {name: round(value, 1) for name, value in clock.seconds.items()},
            "share": {name: round(value / wall, 3) for name, value in clock.seconds.items()},
            "slot_seconds": {name: round(value, 1) for name, value in parts.items()},
            "share_of_slot_seconds": {name: round(value / of_slots, 3) for name, value in parts.items()},
            **machine(torch.device("cpu")),
        },
    )


if __name__ == "__main__":
    main()
