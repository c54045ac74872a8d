"""What failed as a whole is told; single failures within a search are not."""

from __future__ import annotations

from typing import Any

from study.results.failures import whole_failures


def row(trial: str, status: str, error: str | None = None, role: str = "search", seed: int = 0) -> dict[str, Any]:
    return {"trial": trial, "attack": "badnets", "seed": seed, "status": status, "error": error, "role": role}


def test_a_search_with_one_result_is_no_whole_failure() -> None:
    rows = [row("badnets/a/0000", "failed", "E"), row("badnets/a/0001", "diverged")]
    assert whole_failures(rows) == []


def test_searches_baselines_and_victims_without_a_result_are_named_once() -> None:
    rows = [
        row("badnets/a/0000", "failed", "KeyError: 'x' (mine.py:5 in repair)"),
        row("badnets/a/0001", "failed", "KeyError: 'x' (mine.py:5 in repair)"),
        row("badnets/none/baseline", "failed", "cut after 3 s", role="baseline"),
        row("badnets/b/0000", "failed", "victim: DivergedError: loss", seed=1),
        row("badnets/c/0000", "failed", "victim: DivergedError: loss", seed=1),
        row("badnets/ft/baseline", "ok", role="baseline"),
    ]
    assert whole_failures(rows) == [
        "victim badnets (seed 1): DivergedError: loss",
        "badnets/a: all of its 2 trials failed: KeyError: 'x' (mine.py:5 in repair)",
        "badnets/none/baseline: its only trial failed: cut after 3 s",
    ]
