"""Does a study come out the same when everything under it is killed? Real processes, seeded faults, then a calm run.

    python -m benchmarks.chaos [--trials 300] [--nodes 3] [--faults 40] [--seed 0]

A study of short trials runs over raylets of one CPU each. At moments spread over its rows one of these happens, drawn
with the seed: a worker is killed (SIGKILL), a node with all its workers (another joins), the driver (the same command
is given again), or the store's folder is away for some seconds (where the study stops for that, the same command is
given again). Its search has just as many settings as trials, so that every run measures the same ones, in whatever
order. At the end all of this must hold, or the benchmark fails: the requested trials exactly, none twice, none failed;
every victim in the store valid; no Optuna trial left running; and the rates of every setting, hence the front and its
hypervolume, those of the run without faults. `lost_seconds_per_fault`: what the faults cost, over the calm run's time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import torch
import yaml
from optuna.trial import TrialState

from benchmarks.common import machine, record
from benchmarks.raylets import Raylets, raylets
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.record.stopped import TRY_LATER
from study.results.pareto import hypervolume, non_dominated_indices
from trainables.storage.store import Store

ROOT = Path(__file__).parents[1]
KINDS = ("worker", "node", "driver", "store")
AWAY_SECONDS = (1.0, 4.0)
# From the row after which a fault is due to the fault.
DELAY_SECONDS = (0.0, 1.0)
RATES = ("asr_search", "clean_accuracy_search", "asr_report", "clean_accuracy_report")
SHORTEST = 20  # iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    arguments = parser.parse_args()
    row = measure(arguments.trials, arguments.nodes, arguments.faults, arguments.seed)
    record("chaos", {**row, **machine(torch.device("cpu"))})


def measure(trials: int, nodes: int, faults: int, seed: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Both runs and what they show; RuntimeError where one of the claims does not hold."""
    load = os.getloadavg()[0]
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    draw = random.Random(seed)
    # Every kind as often as every other, in a drawn order.
    order = [kinds[number % len(kinds)] for number in range(faults)]
    draw.shuffle(order)
    with mock.patch.dict(os.environ, environment), tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        runs = []
        for name, wanted in (("chaos", order), ("calm", [])):
            with raylets(nodes, cpus=1) as cluster:
                run = _Run(Path(folder) / name, trials, cluster, draw)
                run.to_the_end(wanted)
                run.check()
                runs.append(run)
        chaos, calm = runs
        if chaos.rates() != calm.rates():
            raise RuntimeError("the settings of the two runs do not have the same rates")
        front = calm.front()  # while the folder is there
        if chaos.front() != front:
            raise RuntimeError(f"two fronts: {chaos.front()} and, calm, {front}")
    per_trial = calm.seconds / trials
    waits = {kind: [seconds for one, seconds in chaos.waits if one == kind] for kind in kinds}
    return {
        "trials": trials,
        "nodes": nodes,
        "faults": faults,
        "seed": seed,
        "by_kind": {kind: order.count(kind) for kind in kinds},
        "driver_starts": chaos.starts,
        "calm_seconds": round(calm.seconds, 1),
        "chaos_seconds": round(chaos.seconds, 1),
        "lost_seconds_per_fault": round((chaos.seconds - calm.seconds) / max(1, faults), 2),
        "seconds_of_a_calm_trial": round(per_trial, 2),
        "seconds_to_the_next_row": {kind: round(statistics.mean(found), 1) for kind, found in waits.items() if found},
        "front": len(front),
        "hypervolume": round(hypervolume(front), 4),
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


class _Run:
    """One study in ``folder``, whose command is given until it is finished."""

    def __init__(self, folder: Path, trials: int, cluster: Raylets, draw: random.Random) -> None:
        folder.mkdir()
        self.trials, self._cluster, self._draw = trials, cluster, draw
        self.out, self._store, self._log = folder / "study", folder / "store", folder / "log"
        (folder / "chaos.yaml").write_text(yaml.safe_dump(_spec(trials)))
        program = [sys.executable, "-m", "study.cli", "run", str(folder / "chaos.yaml")]
        self._command = [*program, "--out", str(self.out), "--store", str(self._store), "--address", cluster.address]
        self.starts, self.seconds = 0, 0.0
        self.waits: list[tuple[str, float]] = []

    def to_the_end(self, kinds: Sequence[str]) -> None:
        """Run the study; one fault of each of ``kinds``, in this order, spread over its rows."""
        began = time.monotonic()
        # The last ones while some trials are still to come.
        due = sorted(self._draw.randint(1, max(1, self.trials * 9 // 10)) for _ in kinds)
        driver = self._start()
        for rows, kind in zip(due, kinds, strict=True):
            driver = self._go_on(driver, partial(self._has, rows))
            time.sleep(self._draw.uniform(*DELAY_SECONDS))
            before, at = self._rows(), time.monotonic()
            driver = self._fault(kind, driver)
            # One at a time: the next one would end what the study does about this one.
            driver = self._go_on(driver, partial(self._has, before + 1))
            self.waits.append((kind, time.monotonic() - at))
        while (code := driver.wait()) == TRY_LATER:
            driver = self._start()
        if code != 0:
            raise RuntimeError(f"the driver ended with {code}: {self._said()}")
        self.seconds = time.monotonic() - began

    def _go_on(self, driver: subprocess.Popen[bytes], until: Callable[[], bool]) -> subprocess.Popen[bytes]:
        """Wait; a driver that stopped for want of the store is started again."""
        while not until():
            code = driver.poll()
            if code == TRY_LATER:
                driver = self._start()
            elif code is not None and not (code == 0 and self._has(self.trials)):
                raise RuntimeError(f"the driver ended with {code}: {self._said()}")
            elif code == 0:
                break
            time.sleep(0.05)
        return driver

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._log.parent
            )

    def _fault(self, kind: str, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        if kind == "worker" and (actors := self._cluster.actors()):
            os.kill(self._draw.choice(sorted(actors)), signal.SIGKILL)
        elif kind == "node":
            self._cluster.kill(self._draw.choice(self._cluster.nodes))
            self._cluster.add()
        elif kind == "driver" and driver.poll() is None:
            driver.kill()
            driver.wait()
            driver = self._start()
        elif kind == "store":
            away = self._store.with_name("away")
            self._store.rename(away)
            time.sleep(self._draw.uniform(*AWAY_SECONDS))
            if self._store.exists():
                raise RuntimeError("something was written where the store had been")
            away.rename(self._store)
        return driver

    def _rows(self) -> int:
        ledger = self.out / "trials.jsonl"
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    def _has(self, rows: int) -> bool:
        return self._rows() >= rows

    def _said(self) -> str:
        return self._log.read_text()[-2000:]

    def check(self) -> None:
        """RuntimeError unless all trials are there, once, measured; all victims whole; and nothing left running."""
        ledger = Ledger.read(self.out / "trials.jsonl")
        if ledger.damaged:
            raise RuntimeError("; ".join(ledger.damaged))
        rows = ledger.rows()
        wanted = sorted(f"badnets/super_ft/{number:04d}" for number in range(self.trials))
        if sorted(row["trial"] for row in rows) != wanted:
            raise RuntimeError(f"{len(rows)} rows of {len({row['trial'] for row in rows})} trials; {self.trials} asked")
        if bad := [row for row in rows if row["status"] not in ("ok", "diverged")]:
            raise RuntimeError(f"{len(bad)} trials failed, the first with {bad[0]['error']}")
        store = Store(self._store)
        victims = [path.name for path in self._store.iterdir() if path.is_dir() and path.name != "derived"]
        if len(victims) != 2 or any(store.load(name) is None for name in victims):
            raise RuntimeError(f"victims {victims}; a clean one and one with a backdoor were asked for")
        study = optuna.load_study(study_name="chaos/badnets/super_ft", storage=open_storage("journal", self.out))
        trials = study.get_trials(deepcopy=False)
        asked = [trial for trial in trials if "id" in trial.user_attrs]
        if len(asked) != self.trials or any(trial.state != TrialState.COMPLETE for trial in asked):
            raise RuntimeError("Optuna does not hold each trial once, complete")
        if any(not trial.state.is_finished() for trial in trials):
            raise RuntimeError("Optuna holds a trial that is left running")

    def rates(self) -> dict[str, list[Any]]:
        """What was measured of each setting."""
        rows = Ledger.read(self.out / "trials.jsonl").rows()
        return {_settings(row): [row["status"], *(row[name] for name in RATES)] for row in rows}

    def front(self) -> list[tuple[float, float]]:
        """On the search half, ASR ascending."""
        rows = Ledger.read(self.out / "trials.jsonl").rows()
        points = [(row["asr_search"], row["clean_accuracy_search"]) for row in rows]
        return [points[index] for index in non_dominated_indices(points)]


def _settings(row: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in row.items() if key.startswith("param.")}, sort_keys=True)


def _spec(trials: int) -> dict[str, Any]:
    """Models of width 2 on 8-pixel digits; as many lengths of the schedule as trials, and nothing else to choose."""
    fixed = {"lr_base": [3e-4, 3e-4], "lr_max1": [0.1, 0.1], "lr_max2": [1e-3, 1e-3]}
    return {
        "name": "chaos",
        "dataset": "digits",
        "image_size": 8,
        "width": 2,
        "precision": "float32",
        "attacks": ["badnets"],
        "defenses": ["super_ft"],
        "baselines": [],
        "victim": {"epochs": 8, "batch_size": 64, "lr": 0.05},
        "clean_fraction": 0.1,
        "defense": {"super_ft": {"batch_size": 16, "cycles1": 0.1, "cycles2": 0.1}},
        "search": {
            "trials": trials,
            "sampler": "random",
            "published": False,
            "ranges": {"super_ft": {"iterations": [SHORTEST, SHORTEST + trials - 1], **fixed}},
        },
    }


if __name__ == "__main__":
    main()
