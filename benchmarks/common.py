"""What every benchmark prints and keeps: machine, versions, n, median and spread."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int = 4096, repeats: int = 5) -> float:
    """Operations per second (a multiply-add counts as 2) of the device's fastest square matrix product in ``dtype``."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        product = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    del product
    return 2 * side**3 / min(seconds[1:])


def training_operations(model: nn.Module, image_size: int) -> float:
    """Operations of convolutions and linear layers per trained image: forward once, backward twice.

    The first layer's gradient to the image is counted too, which nobody takes; it is 0.3 % of PreAct-ResNet18.
    """
    total, handles = 0, []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module.weight, Tensor)
        per_output = module.weight[0].numel()  # multiply-adds
        total += 2 * per_output * output[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(count))
    was_training = model.training
    try:
        with torch.no_grad():
            parameter = next(model.parameters())
            model.eval()(torch.rand(1, 3, image_size, image_size, device=parameter.device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return 3.0 * total


def record(name: str, row: dict[str, Any]) -> None:
    """Print the row and append it to ``results/NAME.jsonl``."""
    row = {"benchmark": name, "date": datetime.now(UTC).date().isoformat(), **row}
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))
