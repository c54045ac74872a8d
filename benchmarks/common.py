"""What every benchmark prints and keeps: machine, versions, n, median and spread."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from trainables.machine.cores import usable_cores
from trainables.machine.provenance import describe_device, versions

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": describe_device(device),
        "cpus": usable_cores(),
        "system": platform.system(),
        "versions": versions(),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """n, median and the whole spread of repeated measurements."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def in_turns(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each side measures, so often; in turns, so that a change of the machine's load meets all sides."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, measure in sides.items():
            found[name].append(measure())
    return found


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """One side over the other, turn by turn."""
    return summary([a / b for a, b in zip(numerators, denominators, strict=True)])


def record(name: str, row: dict[str, Any]) -> None:
    """Print the row and append it to ``results/NAME.jsonl``."""
    row = {"benchmark": name, "date": datetime.now(UTC).date().isoformat(), **row}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
