"""What failed as a whole in a study: victims, searches and baselines of which no trial has a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

VICTIM = "victim: "  # how the error of a trial begins that had no victim


def whole_failures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each victim that could not be made, and each search and baseline whose every trial failed."""
    lines: list[str] = []
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        error = str(row.get("error") or "")
        if row["status"] == "failed" and error.startswith(VICTIM):
            lines.append(f"victim {row['attack']} (seed {row['seed']}): {error.removeprefix(VICTIM)}")
            continue
        trial = str(row["trial"])
        groups.setdefault(
            trial.rpartition("/")[0] if row.get("role") in ("search", "repeat", "confirm") else trial, []
        ).append(row)
    for label, members in groups.items():
        if all(row["status"] == "failed" for row in members):
            count = "its only trial" if len(members) == 1 else f"all of its {len(members)} trials"
            lines.append(f"{label}: {count} failed: {members[0].get('error')}")
    return list(dict.fromkeys(lines))
