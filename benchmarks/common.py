"""What every benchmark prints and keeps: machine, versions, n, median and spread."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainables.provenance import describe_device, versions

RESULTS = Path(__file__).parent / "results"


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "device": describe_device(device),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "versions": versions(),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    """n, median and the whole spread of repeated measurements."""
    return {"n": len(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def record(name: str, row: dict[str, Any]) -> None:
    """Print the row and append it to ``results/NAME.jsonl``."""
    row = {"benchmark": name, "date": datetime.now(UTC).date().isoformat(), **row}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
