"""How far a search is, from its rows and the spec: the one answer of `run`, `plan`, `show` and the report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from study.plan.jobs import Plan, Search
from study.record.cost import Bill
from study.results.failures import VICTIM

_ROUNDING = 1e-9


class Standing:
    """One search of a plan; `add` takes its rows as they come, in any order.

    Args:
        plan: of the study; victims without a backdoor left out.
        search: of the plan.
    """

    def __init__(self, plan: Plan, search: Search) -> None:
        self.label, self.cells = search.label, frozenset((cell.attack, cell.seed) for cell in search.cells)
        self.most, self.budget = plan.most_settings(search), plan.spec.search.budget_epochs
        self.spent = 0.0  # E
        self.rows = 0
        self.finished = 0  # settings with a row for every cell
        self._bill = Bill()
        self._rows_of: Counter[str] = Counter()
        self._without_victim: set[tuple[str, int]] = set()
        self._measured = False

    def add(self, row: Mapping[str, Any]) -> float:
        """Count a row of the search; returns what the search is charged for it, in E."""
        key = row["attack"], row["seed"]
        charged = self._bill.charge(row)
        if key not in self.cells:  # of a victim without a backdoor, measured before that was a reason to leave it out
            return charged
        self.spent += charged
        self.rows += 1
        self._rows_of[row["trial"]] += 1
        self.finished += self._rows_of[row["trial"]] == len(self.cells)
        if row["status"] == "failed" and str(row.get("error") or "").startswith(VICTIM):
            self._without_victim.add(key)
        else:
            self._measured = True
        return charged

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

        It may not once it has as many as it was given or its space holds; once its budget is spent by what is finished
        and, at its mean cost, what is running; or if none of its victims could be made: one setting says that.
        """
        if asked >= self.most or self._has_no_victim:
            return False
        if self.budget is None or asked == 0:
            return True
        if self.finished == 0:
            return False  # the published point runs alone: its cost says how many more there are
        committed = self.spent + (asked - self.finished) * self.cost_of_a_setting
        return committed < self.budget * len(self.cells) * (1 - _ROUNDING)

    def settings_in_the_end(self, asked: int | None = None) -> int:
        """Settings of the finished search; while one with a budget still runs, an estimate.

        Args:
            asked: settings begun, those without a row included; None: only those with a row are known.
        """
        asked = self.begun if asked is None else asked
        if asked <= self.finished and not self.may_ask(asked):
            return asked
        if self._has_no_victim:
            return asked
        if self.budget is None or self.cost_of_a_setting == 0.0:
            return max(asked, self.most)
        by_budget = math.ceil(self.budget * len(self.cells) / self.cost_of_a_setting * (1 - _ROUNDING))
        return max(asked, min(self.most, by_budget))

    def rows_left(self, asked: int | None = None) -> int:
        """Rows still to come."""
        return max(0, self.settings_in_the_end(asked) * len(self.cells) - self.rows)

    @property
    def _has_no_victim(self) -> bool:
        return not self._measured and self._without_victim >= self.cells
