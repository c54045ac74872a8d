"""bfloat16 3x3 convolutions on a CPU: torch's kernels against patches times weights, forward and both gradients.

    python -m benchmarks.convolution [--batch 128] [--repeats 9]

The shapes are the layers of PreAct-ResNet18 (width 64 and 32, at 32 pixels) with at least 128 channels, channels last.
The limits in `trainables.models.convolution` come from here: the ratio says how many times the product is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import in_turns, machine, ratio, record, summary
from trainables.models.convolution import PatchProduct

# Channels in and out, side of the input, stride.
LAYERS = [
    (512, 512, 4, 1),
    (256, 512, 8, 2),
    (256, 256, 4, 1),
    (128, 256, 8, 2),
    (256, 256, 8, 1),
    (128, 256, 16, 2),
    (128, 128, 16, 1),
]


def step(convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, gradient: Tensor) -> float:
    """Seconds of the forward pass and both gradients."""
    started = time.perf_counter()
    torch.autograd.grad(convolve(x, weight), (x, weight), gradient)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator).bfloat16()
        return values.contiguous(memory_format=torch.channels_last)

    found = {}
    for channels, out_channels, side, stride in LAYERS:

        def torchs(x: Tensor, weight: Tensor, stride: int = stride) -> Tensor:
            return functional.conv2d(x, weight, stride=stride, padding=1)

        def ours(x: Tensor, weight: Tensor, stride: int = stride) -> Tensor:
            product: Tensor = PatchProduct.apply(x, weight, stride)
            return product

        x = drawn(arguments.batch, channels, side, side).requires_grad_()
        weight = drawn(out_channels, channels, 3, 3).requires_grad_()
        gradient = drawn(arguments.batch, out_channels, side // stride, side // stride)
        sides = {"torch": torchs, "product": ours}
        steps = {name: partial(step, convolve, x, weight, gradient) for name, convolve in sides.items()}
        in_turns(steps, 2)  # first touch
        seconds = in_turns(steps, arguments.repeats)
        found[f"{channels}->{out_channels}, {side}x{side}, stride {stride}"] = {
            **{f"{name}_ms": round(1e3 * summary(values)["median"], 2) for name, values in seconds.items()},
            "ratio": ratio(seconds["torch"], seconds["product"]),
        }
    record(
        "convolution",
        {
            "batch": arguments.batch,
            "layers": found,
            "threads": torch.get_num_threads(),
            **machine(torch.device("cpu")),
        },
    )


if __name__ == "__main__":
    main()
