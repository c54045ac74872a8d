"""Where a number comes from: versions, device, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from functools import cache

import torch


@cache
def versions() -> str:
    """Versions of superft, Python and what computes, in one line."""
    found = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("superft", "torchvision", "ray", "optuna"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(sorted(found))


def describe_device(device: torch.device) -> str:
    """The device in words: the card's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {_processor()} x{torch.get_num_threads()}"


@cache
def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory taken so far: of the card since the last reset, or of this process on a CPU (never reset)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
