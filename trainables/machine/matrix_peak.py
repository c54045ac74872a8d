"""What a device can do at best, and what a model asks of it: a training's share of the peak is one over the other."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn


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


def matrix_peak_within(device: torch.device, dtype: torch.dtype, seconds: float, largest: int = 8192) -> float:
    """The best of `matrix_peak` over sides of 512, 1024, ... as far as about so many seconds reach; the first always.

    Small products do not fill a large card, large ones take a slow processor too long.
    """
    side, best, ends = 512, 0.0, time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        best = max(best, matrix_peak(device, dtype, side))
        took = time.perf_counter() - started
        if side * 2 > largest or time.perf_counter() + 8 * took > ends:  # twice the side, eight times the work
            return best
        side *= 2


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
