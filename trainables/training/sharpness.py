"""Sharpness-aware steps (SAM: Foret et al. 2021, arXiv:2010.01412): where the gradient of a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.training.captured_step import replayable


@replayable
def climb(parameters: Sequence[nn.Parameter], *, rho: float, adaptive: bool) -> None:
    """Move the parameters in place by e, towards the worst loss within ``rho`` to first order.

    Adaptive: e = rho w^2 g / || |w| g ||, so that || e / |w| || = rho; else e = rho g / ||g||. One norm over all
    parameters together. Without any gradient nothing moves.
    """
    climbing = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in climbing if parameter.grad is not None]
    if not climbing:
        return
    # All tensors of one operation in one launch: a card spends more time on starting such small ones than on them.
    weights: list[Tensor] = [parameter.detach() for parameter in climbing]
    scaled = torch._foreach_mul(torch._foreach_abs(weights), gradients) if adaptive else gradients
    length = torch.stack(torch._foreach_norm(scaled)).norm()
    # A gradient of zero has no direction: stay. (The usual small constant in the denominator would shorten every move.)
    factor = torch.where(length > 0, rho / length, 0.0)
    ways = torch._foreach_mul(torch._foreach_mul(weights, weights), gradients) if adaptive else gradients
    torch._foreach_add_(weights, torch._foreach_mul(ways, factor))


@contextmanager
def moved(parameters: Sequence[nn.Parameter], perturb: Callable[[Sequence[nn.Parameter]], None]) -> Iterator[None]:
    """The parameters after ``perturb`` within the block; afterwards, bit by bit, what they were."""
    weights = [parameter.detach() for parameter in parameters]
    before = [torch.empty_like(weight) for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(before, weights)
        perturb(parameters)
    try:
        yield
    finally:
        # Copied back: subtracting the move again would leave its rounding.
        with torch.no_grad():
            torch._foreach_copy_(weights, before)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation uses the batch as before within the block, and its running statistics stay as they are."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    # Not momentum 0: that still counts the batch, and 0 * inf of a lost run would be NaN.
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True
