"""What the searches of a running study may still spend (``search.budget_epochs``), and which have to wait for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from study.plan.jobs import Search
from study.results.finished import ROUNDING, Standing
from trainables.job import Cell


class Budgets:
    """A setting holds what it is to cost, from its first job until its last row; its rows say what it did cost.

    Args:
        labels: of the searches.
        cost: planned E of settings on a cell; None where no search has a budget.
        ended: searches into whose budget nothing more fitted before, see `record.ended`.
        on_end: called with the same once another search has ended so.
    """

    def __init__(
        self,
        labels: Iterable[str],
        cost: Callable[[Cell, Mapping[str, Any]], float] | None = None,
        ended: Mapping[str, int] = MappingProxyType({}),
        on_end: Callable[[Mapping[str, int]], None] | None = None,
    ) -> None:
        self._cost, self._on_end = cost, on_end
        self.ended = dict(ended)
        self.parked = set[str]()  # searches for whose next setting a running one may leave enough
        self._held: dict[str, dict[str, float]] = {label: {} for label in labels}

    def affords(self, search: Search, standing: Standing, settings: Mapping[str, Any]) -> bool:
        """Whether settings fit into what neither finished nor running ones take of the search's budget."""
        if standing.budget is None or self.is_beyond(search, standing, settings):
            return True
        taken = standing.spent + math.fsum(self._held[search.label].values())
        return taken + self._planned(search, settings) <= standing.budget * (1 + ROUNDING)

    def is_beyond(self, search: Search, standing: Standing, settings: Mapping[str, Any]) -> bool:
        """Whether settings are the published point and cost more than the whole budget: they are run beside it."""
        if standing.budget is None or not search.is_published(settings):
            return False
        return self._planned(search, settings) > standing.budget * (1 + ROUNDING)

    def hold(
        self,
        search: Search,
        standing: Standing,
        trial: str,
        settings: Mapping[str, Any],
        rows: Iterable[Mapping[str, Any]],
    ) -> None:
        """A setting is to be run: what it takes, less what its ``rows`` have cost already."""
        if standing.budget is not None and not self.is_beyond(search, standing, settings):
            spent = math.fsum(row["charged_epochs"] for row in rows)
            self._held[search.label][trial] = max(0.0, self._planned(search, settings) - spent)

    def release(self, label: str, trial: str, charged: float, *, last: bool) -> None:
        """What a setting holds shrinks by what a cell of it has cost, E, to nothing with its last."""
        self.parked.discard(label)
        held = self._held[label]
        if trial not in held:
            return
        held[trial] = max(0.0, held[trial] - charged)
        if last:
            del held[trial]

    def shrink(self, label: str, share: float) -> None:
        """A search goes on with this share of its cells."""
        self._held[label] = {trial: share * epochs for trial, epochs in self._held[label].items()}

    def end_or_wait(self, standing: Standing, asked: int) -> None:
        """No setting fits that a search would ask after ``asked`` of them: it waits for running ones or has ended."""
        if self._held[standing.label]:
            self.parked.add(standing.label)
        elif standing.budget is not None:
            self.ended[standing.label] = standing.ended = asked
            if self._on_end is not None:
                self._on_end(self.ended)

    def _planned(self, search: Search, settings: Mapping[str, Any]) -> float:
        """E of settings on all cells of a search that has a budget."""
        assert self._cost is not None, "the driver refuses budgets without it"
        return math.fsum(self._cost(cell, settings) for cell in search.cells)
