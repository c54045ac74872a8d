"""float32 that is float32: NVIDIA's cards otherwise round the factors to TF32, which keeps 10 of their 23 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 within the block, in matrix products and in convolutions, whose default it is; also a decorator.

    bfloat16 stays as it is. The switches are those of the whole process; what they were comes back. It belongs around
    whole functions, not only around forward passes: backward passes look at the switches again.
    """
    cudnn, switches = torch.backends.cudnn, _switches()
    before = [(switch, switch.fp32_precision) for switch in switches]
    convolutions, products = _old(lambda: cudnn.allow_tf32), _old(torch.get_float32_matmul_precision)
    # The old switches too: where old and new ones differ, torch refuses to multiply.
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for switch, was in before:
            switch.fp32_precision = was


def _switches() -> list[Any]:
    """What has a switch of its own since torch 2.9; before that there are only the old ones."""
    cudnn, cpu = torch.backends.cudnn, torch.backends.mkldnn
    found = [getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), getattr(cpu, "matmul", None)]
    return [switch for switch in (*found, torch.backends.cuda.matmul) if hasattr(switch, "fp32_precision")]


def _old(read: Callable[[], Any]) -> Any:
    """The value of an old switch; None where somebody has set the new ones apart, which it then refuses to tell."""
    try:
        return read()
    except RuntimeError:
        return None
