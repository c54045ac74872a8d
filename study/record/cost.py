"""The unit of cost: 1 E is the compute of one training epoch on the attacker's whole training set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def epochs(forward: Any, backward: Any, input_backward: Any, train_size: Any) -> Any:
    """E = (forward + 2 backward + 2 input-backward samples) / (3 N), for numbers and for columns of a table alike.

    A backward pass takes about twice a forward one, also when only the gradient of the input is asked for: it runs
    through the whole network all the same (counted in full, though it leaves out the weights' own gradients).
    """
    return (forward + 2 * (backward + input_backward)) / (3 * train_size)


def row_epochs(row: Mapping[str, Any]) -> float:
    """Cost of a ledger row in E; 0 for a trial that failed before it counted anything."""
    if not row.get("train_size"):
        return 0.0
    forward, backward, inputs = (row.get(f"{name}_samples") or 0 for name in ("forward", "backward", "input_backward"))
    return float(epochs(forward, backward, inputs, row["train_size"]))


class Bill:
    """What a search is charged: its trials' own work, and once whatever work of others it found ready made.

    Without the second part a search would get more settings for the same budget in a store where somebody has been
    before it. A trial that used work may end before the trial that made it: the maker is then charged the rest.
    """

    def __init__(self) -> None:
        self._lent: dict[str, float] = {}  # E that a user was charged for it; 0 where its maker was

    def charge(self, row: Mapping[str, Any]) -> float:
        """E for the next row of the search; the sum over its rows does not depend on their order."""
        cost = row_epochs(row)
        shared = json.loads(row.get("shared_work") or "{}")
        for name in shared.get("made", ()):
            cost -= self._lent.get(name, 0.0)
            self._lent[name] = 0.0
        for name, (forward, backward, inputs) in shared.get("reused", {}).items():
            if name not in self._lent:
                self._lent[name] = float(epochs(forward, backward, inputs, row["train_size"]))
                cost += self._lent[name]
        return cost
