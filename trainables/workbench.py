"""What stays in a process over trials: data sets, victims and what trials share are loaded once."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from trainables.data.images import Dataset
from trainables.data.load import DataSource
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.evaluation.curve import Every
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.machine.threads import on_threads
from trainables.models.classifier import Classifier
from trainables.storage.memo import Memo
from trainables.storage.store import Store, StoreUnavailableError
from trainables.training.loop import Counters
from trainables.trial import judge_detectors, run_trial
from trainables.trial_result import TrialResult
from trainables.victims.make import obtain_victim
from trainables.victims.victim import Victim


@lru_cache(maxsize=2)
def _load(data: DataSource) -> Dataset:
    return data.load()


class Workbench:
    """What stays in a process over trials: data sets and victims are loaded once.

    Args:
        store: of victims; what trials share (features, retrained models) lies in its folder ``derived``.
        device: trials run on.
        keep: how many victims are kept; the oldest goes first.
        trains: whether a victim that the store does not hold is trained; else that is a StoreUnavailableError.
        threads: that PyTorch computes on in `victim` and `run`, >= 1; as many as a study's trials have by default,
            whatever this process had before and has again after: on others the results differ.
    """

    def __init__(
        self, store: Store, device: torch.device, keep: int = 16, *, trains: bool = True, threads: int = 1
    ) -> None:
        self.store, self.device, self.keep, self.trains, self.threads = store, device, keep, trains, threads
        self._victims: dict[tuple[str, bool], Victim] = {}
        self.memo = Memo(store.derived())

    def dataset(self, data: DataSource) -> Dataset:
        """The data set, on the CPU, loaded once per process."""
        return _load(data)

    def upstream(self, cell: Cell) -> Dataset | None:
        """The attacker's data set, where it is not the user's."""
        return None if cell.upstream is None else _load(cell.upstream)

    def victim_name(self, cell: Cell) -> str:
        """Name of the cell's victim in the store."""
        return cell.victim.name(self.dataset(cell.data), self.upstream(cell))

    def victim(self, cell: Cell) -> Victim:
        """The cell's victim: kept, from the store, or trained now."""
        key = (self.victim_name(cell), cell.control)
        if key not in self._victims:
            with on_threads(self.threads):
                victim = self._obtain(cell)
            while len(self._victims) >= self.keep:
                self._victims.pop(next(iter(self._victims)))
            self._victims[key] = victim
        return self._victims[key]

    def _obtain(self, cell: Cell) -> Victim:
        dataset, upstream = self.dataset(cell.data), self.upstream(cell)
        if not self.trains and not self.store.holds(name := self.victim_name(cell)):
            raise StoreUnavailableError(f"store {self.store.where} holds victim {name} no more")
        victim = obtain_victim(cell.victim, dataset, self.store, self.device, upstream)
        if not cell.control:
            return victim
        clean = obtain_victim(cell.victim.control(), dataset, self.store, self.device, upstream)
        model = copy.deepcopy(clean.model).to(self.device)
        test, triggered = dataset.test.to(self.device), victim.triggered.to(self.device)
        return victim.as_control(clean, evaluate(model, test, triggered, precision=cell.victim.precision))

    def run(
        self,
        cell: Cell,
        settings: Mapping[str, Any],
        curve: Every | None = None,
        aftermath: Aftermath | None = None,
        keep: Callable[[Classifier], Mapping[str, Any] | None] | None = None,
    ) -> TrialResult:
        """`run_trial` with this bench's data set, victim and device."""
        started = time.perf_counter()
        victim = self.victim(cell)
        waited = time.perf_counter() - started
        with on_threads(self.threads):
            result = run_trial(
                cell,
                settings,
                dataset=self.dataset(cell.data),
                victim=victim,
                device=self.device,
                memo=self.memo,
                curve=curve,
                aftermath=aftermath,
                keep=keep,
            )
        result.seconds_setup += waited
        result.wall_seconds += waited
        return result

    def judge_detectors(
        self, cell: Cell, proposed: Sequence[Mapping[str, Any]]
    ) -> tuple[list[dict[str, Any]], Counters]:
        """`judge_detectors` with this bench's data set, victim and device."""
        victim = self.victim(cell)
        with on_threads(self.threads):
            return judge_detectors(
                cell,
                proposed,
                dataset=self.dataset(cell.data),
                victim=victim,
                device=self.device,
                memo=self.memo,
            )
