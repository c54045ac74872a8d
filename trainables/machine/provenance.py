"""Where a number comes from: code, versions, device, memory."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

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
def code() -> str:
    """Version of superft and, where it runs from a repository, the commit; ``+`` marks changes that are not in it."""
    try:
        version = importlib.metadata.version("superft")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, or packed for a cluster
        return version
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{version} {commit}{'+' if changed else ''}" if commit else version


def _git(root: Path, *arguments: str) -> str:
    """What git says about the repository at ``root``; nothing where git is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


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
