"""The device that a process computes on: found once, with its number; a GPU that was given and is not there is told."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class NoGpuError(Exception):
    """This process was given a GPU and torch finds none; the message is one line with what to do."""


def numbered(device: torch.device) -> torch.device:
    """The same device with its number: ``cuda`` alone means the current card, which some of torch's calls refuse."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def best_device() -> torch.device:
    """The current card where torch finds one, else the CPU."""
    return numbered(torch.device("cuda")) if torch.cuda.is_available() else torch.device("cpu")


def given_device(gpus: Sequence[int | str]) -> torch.device:
    """The device of a process that was given ``gpus`` (their names; whole or shared): a card, or without any the CPU.

    Raises:
        NoGpuError: torch finds no GPU. On the CPU the trial would take a hundred times as long, and hold the card.
    """
    if not gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return best_device()
    built_for = torch.version.cuda or torch.version.hip
    why = f"finds none (it is built for {built_for}: is the driver too old?)" if built_for else "is built without CUDA"
    raise NoGpuError(
        f"this process was given GPU {', '.join(map(str, gpus))}, but its torch {torch.__version__} {why}; install a "
        "torch that finds it, or set resources.gpus_per_trial: 0"
    )
