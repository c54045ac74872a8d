"""A study in virtual time: the study's own driver and searches, with answers from surrogates instead of trials."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.record.ledger import Key, Ledger, Row, row_key
from study.results.pareto import RunningFront, hypervolume, hypervolume_box
from study.results.scores import Values
from study.run.driver import Driver
from study.search.optuna_search import OptunaSearch
from study.simulate.surrogate import Answer, Surrogate
from study.simulate.table import Table
from trainables.job import Job


class LedgerInMemory(Ledger):
    """A ledger that is not kept: thousands of simulated studies need no disk."""

    def __init__(self) -> None:
        self.path, self._file = Path("simulated"), None
        self._rows: list[Row] = []
        self._keys: set[Key] = set()
        self.damaged = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished trial."""
        self._keys.add(row_key(row))
        self._rows.append(dict(row))


@dataclass
class Trace:
    """One search of a simulated study after each of its finished settings.

    Args:
        hypervolume: of the whole box, of the true values of the settings on its front; so too ``corner``: of the box of
            `pareto.hypervolume_box`.
        epochs: E spent so far, per cell, all finished settings together.
        seconds: virtual time.
        front: true values of the settings on its front at the end, (ASR, clean accuracy).
    """

    hypervolume: list[float]
    corner: list[float]
    epochs: list[float]
    seconds: list[float]
    front: list[Values]


class Oracle:
    """Answers trials from surrogates.

    Args:
        table: whose parameters the settings have.
        surrogates: by attack.
        noise_seed: of the noise between seeds; None: none is added.
    """

    def __init__(self, table: Table, surrogates: Mapping[str, Surrogate], noise_seed: int | None) -> None:
        self._table, self._surrogates, self._noise_seed = table, surrogates, noise_seed
        self._known: dict[tuple[str, str], Answer] = {}

    def measure(self, job: Job) -> tuple[dict[str, Any], float]:
        """What a trial would write as its row, and the seconds that it takes."""
        one, params = self._surrogates[job.cell.attack], self._table.search.space.to_params(job.settings)
        x = self._table.encoded_params(params)
        true = told = one.answer(x)
        self._known[job.trial, job.cell.attack] = true
        if self._noise_seed is not None:
            told = one.noisy(true, x, self._noise_seed, params)
        row: dict[str, Any] = {
            **job.cell.columns(),
            "status": "ok",
            "error": None,
            "collapsed": False,
            "wall_seconds": told.seconds,
            "asr_search": told.asr,
            "clean_accuracy_search": told.clean_accuracy,
            "clean_accuracy_before": one.before,
            "clean_accuracy_before_report": one.before,
            # So that the driver's own bill comes to the E of the answer.
            "train_size": 1,
            "forward_samples": told.epochs,
            "backward_samples": told.epochs,
            **{f"param.{key}": value for key, value in job.settings.items()},
        }
        return row, told.seconds

    def truth(self, trial: str, search: OptunaSearch) -> Values:
        """What a setting comes to without noise, the mean over the cells of its search."""
        answers = [self._known[trial, cell.attack] for cell in search.search.cells]
        return _mean(one.asr for one in answers), _mean(one.clean_accuracy for one in answers)

    def before(self, search: OptunaSearch) -> float:
        """Clean accuracy before a repair, likewise."""
        return _mean(self._surrogates[cell.attack].before for cell in search.search.cells)


def run_in_virtual_time(driver: Driver, oracle: Oracle, slots: int) -> dict[str, Trace]:
    """Run a whole study; what became of each search, by its label.

    A slot that is free takes the driver's next job at once; the job that ends first is finished first, of two that end
    together the one that began first. What the driver itself does takes no time here.
    """
    watched = {search.search.label: _Watched(search, oracle) for search in driver.searches}
    running: list[tuple[float, int, Job, dict[str, Any]]] = []
    clock, begun = 0.0, 0
    while True:
        while len(running) < slots and (job := driver.next_job()) is not None:
            row, seconds = oracle.measure(job)
            heapq.heappush(running, (clock + seconds, begun, job, row))
            begun += 1
        if not running:
            return {label: one.trace for label, one in watched.items()}
        clock, _, job, row = heapq.heappop(running)
        watched[job.label].finish(job, driver.finish(job, row), clock)


class _Watched:
    """A search, and the front that it believes in with the true values of what is on it."""

    def __init__(self, search: OptunaSearch, oracle: Oracle) -> None:
        self._search, self._oracle = search, oracle
        self._believed, self._members = RunningFront(), dict[Values, Values]()
        self._told: dict[str, list[Values]] = {}
        self._epochs = 0.0
        self.trace = Trace([], [], [], [], [])

    def finish(self, job: Job, row: Mapping[str, Any], clock: float) -> None:
        cells = self._search.search.cells
        self._epochs += row["charged_epochs"] / len(cells)
        told = self._told.setdefault(job.trial, [])
        told.append((row["asr_search"], row["clean_accuracy_search"]))
        if len(told) < len(cells):
            return
        point = _mean(one[0] for one in told), _mean(one[1] for one in told)
        if self._believed.add(*point):
            self._members[point] = self._oracle.truth(job.trial, self._search)
            self._members = {one: self._members[one] for one in self._believed.points}
            self.trace.front = [*self._members.values()]
        self.trace.hypervolume.append(hypervolume(self.trace.front))
        self.trace.corner.append(hypervolume_box(self.trace.front, self._oracle.before(self._search)))
        self.trace.epochs.append(self._epochs)
        self.trace.seconds.append(clock)


def _mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
