"""What decides how numbers are rounded beside seeds and settings: kind of device, threads, precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainables.training.execution import chosen_execution
from trainables.training.loop import resolved_precision


def arithmetic(device: torch.device, precision: str) -> dict[str, Any]:
    """``device`` (its kind), ``threads`` (None off the CPU, where they decide nothing) and ``precision``, resolved.

    ``steps`` says that training steps are compiled, where they are: that rounds otherwise, a CUDA graph does not.

    On one kind of machine, under the same versions, equal seeds give equal results where this is equal.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else None
    found = {"device": device.type, "threads": threads, "precision": resolved_precision(device, precision)}
    return found | ({"steps": "compiled"} if chosen_execution() == "compiled" else {})


def arithmetic_text(how: Mapping[str, Any]) -> str:
    """``cpu, 2 threads, float32``; ``cuda, bfloat16``; ``cuda, bfloat16, compiled``."""
    threads = how["threads"]
    counted = [] if threads is None else [f"{threads} thread{'' if threads == 1 else 's'}"]
    return ", ".join([how["device"], *counted, how["precision"], *([how["steps"]] if "steps" in how else [])])
