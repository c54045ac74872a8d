"""Sharpness-aware steps (SAM: Foret et al. 2021, arXiv:2010.01412): where the gradient of a step is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def climb(parameters: Sequence[nn.Parameter], *, rho: float, adaptive: bool) -> None:
    """Move the parameters in place by e, towards the worst loss within ``rho`` to first order.

    Adaptive: e = rho w^2 g / || |w| g ||, so that || e / |w| || = rho; else e = rho g / ||g||. One norm over all
    parameters together. Without any gradient nothing moves.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    if not moved:
        return
    scales = [parameter.detach().abs() if adaptive else torch.ones_like(parameter) for parameter in moved]
    norms = torch._foreach_norm(torch._foreach_mul(scales, gradients))
    length = torch.stack(norms).norm()
    # A gradient of zero has no direction: stay. (The usual small constant in the denominator would shorten every move.)
    factor = torch.where(length > 0, rho / length, 0.0)
    for parameter, gradient, scale in zip(moved, gradients, scales, strict=True):
        parameter.add_(scale.square() * gradient * factor)
