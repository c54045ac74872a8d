"""The samples of every class."""

from __future__ import annotations

import torch
from torch import Tensor


def class_members(labels: Tensor, num_classes: int | None = None) -> tuple[Tensor, ...]:
    """Positions of every class's samples, ascending; by one sort, where a look per class takes N times K.

    Args:
        labels: int64, (N,), none negative.
        num_classes: K; None: up to the greatest label.

    Returns:
        K tensors, int64, on the labels' device; an empty one for a class without a sample.
    """
    counts = torch.bincount(labels, minlength=num_classes or 0).tolist()
    parts: tuple[Tensor, ...] = labels.argsort(stable=True).split(counts)
    return parts if num_classes is None else parts[:num_classes]
