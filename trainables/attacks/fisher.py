"""Diagonal Fisher information of a classifier, and the penalty that holds weights where it is large.

Kirkpatrick et al. 2017, arXiv:1612.00796 (elastic weight consolidation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from trainables.training.loop import Counters, evaluating

# Gradients of single samples that are held at a time, in floats (512 MiB), and samples at a time.
LARGEST_PASS, LARGEST_CHUNK = 2**27, 128


def diagonal_fisher(model: nn.Module, images: Tensor, labels: Tensor, *, counters: Counters) -> list[Tensor]:
    """Mean over samples of p(y|x) (d log p(y|x) / d w_i)^2, one tensor per parameter of ``model``, float32, >= 0.

    The square is of each sample's own gradient: that of a batch's mean gradient is another, smaller quantity. In eval
    mode (batch statistics would tie the samples together) and in float32 (squares of bfloat16 gradients are coarse).

    Args:
        images: float in [0, 1], (N, 3, H, W), on the device of the model.
        labels: int64, (N,).
        counters: N forward and N backward samples are added.
    """
    if len(images) == 0:
        raise ValueError("the Fisher information of no sample is not defined")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def log_likelihood(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, (weights, buffers), (image[None],))
        return -functional.cross_entropy(logits, label[None])

    of_each: Any = vmap(grad_and_value(log_likelihood), in_dims=(None, 0, 0))
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    chunk = max(1, min(LARGEST_CHUNK, LARGEST_PASS // sum(weight.numel() for weight in weights.values())))
    with evaluating(model):
        for some, given in zip(images.split(chunk), labels.split(chunk), strict=True):
            gradients, values = of_each(weights, some, given)
            for name, gradient in gradients.items():
                totals[name] += torch.tensordot(values.exp(), gradient.square(), dims=1)
            counters.forward_samples += len(some)
            counters.backward_samples += len(some)
    return [total / len(images) for total in totals.values()]


def drift(parameters: Sequence[Tensor], anchors: Sequence[Tensor], fisher: Sequence[Tensor]) -> Tensor:
    """Sum of F_i (w_i - w*_i)^2 over all parameters: a scalar, 0 at the anchors w*."""
    parts = zip(parameters, anchors, fisher, strict=True)
    return torch.stack([(information * (now - then).square()).sum() for now, then, information in parts]).sum()
