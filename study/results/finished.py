"""How far a search is, from its rows and the spec: the one answer of `run`, `plan`, `show` and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from study.plan.jobs import Plan, Search
from study.record.columns import DROPPED_BY
from study.record.cost import Bill
from study.record.ledger import row_key
from study.results.failures import VICTIM

# Flag of a published setting that alone costs more than its search may spend: shown, and counted in no budget.
BEYOND_BUDGET = "beyond_budget"
Place = tuple[str, int, int]  # of a cell: attack, seed, defense seed
ROUNDING = 1e-9


class Standing:
    """One search of a plan; `add` takes its rows as they come, in any order.

    Args:
        plan: of the study; victims without a backdoor left out.
        search: of the plan.
        ended: its settings when nothing more fitted into its budget, see `record.ended`; None: it has not ended so.
    """

    def __init__(self, plan: Plan, search: Search, ended: int | None = None) -> None:
        self.label, self.cells = search.label, frozenset(cell.place for cell in search.cells)
        budget = plan.spec.search.budget_epochs
        self.most, self.budget = plan.most_settings(search), None if budget is None else budget * len(self.cells)
        self.ended = ended
        self.spent = 0.0  # E, of what counts in the budget
        self.rows = 0
        self.finished = 0  # settings with a row for every cell, and those that were dropped before that
        self.dropped = set[str]()
        self._bill = Bill()
        self._rows_of: Counter[str] = Counter()
        self._without_victim: set[Place] = set()
        self._measured = False

    def charge(self, row: Mapping[str, Any]) -> float:
        """What the search is charged for a row, in E; once for each row, in their order."""
        return self._bill.charge(row)

    def add(self, row: Mapping[str, Any], charged: float | None = None) -> None:
        """Count a row of the search; ``charged`` is what `charge` said of it, where that was asked before."""
        key = row_key(row)[1:]
        charged = self.charge(row) if charged is None else charged
        if row.get(DROPPED_BY):
            self.finished += self._rows_of[row["trial"]] < len(self.cells)  # else it is counted already
            self.dropped.add(row["trial"])
        if key not in self.cells:  # of a victim without a backdoor, measured before that was a reason to leave it out
            return
        if BEYOND_BUDGET not in row.get("flags", ()):
            self.spent += charged
        self.rows += 1
        self._rows_of[row["trial"]] += 1
        if row["trial"] not in self.dropped:
            self.finished += self._rows_of[row["trial"]] == len(self.cells)
        if row["status"] == "failed" and str(row.get("error") or "").startswith(VICTIM):
            self._without_victim.add(key)
        else:
            self._measured = True

    @property
    def over(self) -> bool:
        """Whether every setting that the search will ever try has its rows."""
        return self._has_no_victim or self.finished >= (self.most if self.ended is None else self.ended)

    @property
    def saved(self) -> int:
        """Rows that dropped settings do not have."""
        return sum(max(0, len(self.cells) - self._rows_of[trial]) for trial in self.dropped)

    @property
    def begun(self) -> int:
        """Settings with a row."""
        return len(self._rows_of)

    @property
    def cost_of_a_setting(self) -> float:
        """Mean over the finished ones, in E; 0 while there is none."""
        return self.spent / max(1, self.finished)

    def may_ask(self, asked: int) -> bool:
        """Whether the search may try another setting, when ``asked`` were begun or wait for their first row.

        It may not once it has as many as it was given or its space holds; once nothing more fits into its budget; or if
        none of its victims could be made: one setting says that.
        """
        return asked < self.most and self.ended is None and not self._has_no_victim

    def settings_in_the_end(self, asked: int | None = None) -> int:
        """Settings of the finished search; while one with a budget still runs, an estimate.

        Args:
            asked: settings begun, those without a row included; None: only those with a row are known.
        """
        asked = self.begun if asked is None else asked
        if asked <= self.finished and not self.may_ask(asked):
            return asked
        if self._has_no_victim or self.ended is not None:
            return asked
        if self.budget is None or self.cost_of_a_setting == 0.0:
            return max(asked, self.most)
        by_budget = math.floor(self.budget / self.cost_of_a_setting * (1 + ROUNDING))
        return max(asked, min(self.most, by_budget))

    def rows_left(self, asked: int | None = None) -> int:
        """Rows still to come, if no more settings are dropped."""
        return max(0, self.settings_in_the_end(asked) * len(self.cells) - self.saved - self.rows)

    @property
    def _has_no_victim(self) -> bool:
        return not self._measured and self._without_victim >= self.cells
