"""Sending what was drawn on the CPU to a card without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

# Bytes up to which CUDA copies ordinary memory aside and goes on at once (CUDA C++ Programming Guide, "Asynchronous
# Concurrent Execution": a block of 64 KB or less). Above, only memory that is pinned is sent without waiting.
SENT_AT_ONCE = 64 * 1024


def sent_ahead(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` of the CPU on ``device``; the CPU does not wait until it has arrived.

    Whatever is computed with it on the device waits by itself. On the CPU it is the tensor as it came. ``tensor`` may
    be changed or forgotten afterwards: torch keeps pinned memory until it is read.
    """
    if device.type == "cpu":
        return tensor
    if tensor.nbytes > SENT_AT_ONCE:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
