"""3x3 convolution that is computed as matrix products where a CPU's bfloat16 convolution kernels are slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# oneDNN's bfloat16 kernels fall off where maps are small and channels many (`benchmarks/results/convolution.jsonl`).
FEWEST_CHANNELS = 256
LARGEST_SIDE = 4  # of the output


class Conv3x3(nn.Conv2d):
    """3x3 convolution with padding 1 and without bias; same weights, state dict and results as torch's.

    Results agree to the rounding of bfloat16. The matrix form is taken under bfloat16 autocast on a CPU, for the sizes
    where it was measured to be faster: it multiplies the memory of the input by 9, which only small maps can afford.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_slow(x):
            return super().forward(x)
        product: Tensor = PatchProduct.apply(x.bfloat16(), self.weight.bfloat16(), self.stride[0])
        return product

    def _is_slow(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and self.in_channels >= FEWEST_CHANNELS
            and _output_side(max(x.shape[2:]), self.stride[0]) <= LARGEST_SIDE
        )


class PatchProduct(torch.autograd.Function):
    """Convolution of (N, C, H, W) by (O, C, 3, 3) with padding 1, as patches times weights; differentiable twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        side = _output_side(x.shape[2], stride), _output_side(x.shape[3], stride)
        product = _patches(x, stride) @ _rows(weight).t()
        return product.view(len(x), *side, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        # Not the patches: derivatives of this backward pass reach the inputs only through what is saved.
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        flat = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            of_patches = (flat @ _rows(weight)).view(len(x), *gradient.shape[2:], 9, x.shape[1])
            to_x = _put_back(of_patches, x, ctx.stride)
        if ctx.needs_input_grad[1]:
            to_weight = (flat.t() @ _patches(x, ctx.stride)).view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        return to_x, to_weight, None


def _output_side(side: int, stride: int) -> int:
    return (side - 1) // stride + 1


def _rows(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (O, 9 C), channels innermost as in the patches."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _shifts(height: int, width: int, stride: int) -> list[tuple[slice, slice]]:
    """Where each of the nine weights reads a padded map."""
    return [
        (slice(i, i + stride * (height - 1) + 1, stride), slice(j, j + stride * (width - 1) + 1, stride))
        for i in range(3)
        for j in range(3)
    ]


def _patches(x: Tensor, stride: int) -> Tensor:
    """(N, C, H, W) -> (N h w, 9 C): what each output position sees."""
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifts = _shifts(_output_side(x.shape[2], stride), _output_side(x.shape[3], stride), stride)
    return torch.cat([padded[:, rows, columns] for rows, columns in shifts], dim=-1).flatten(0, 2)


def _put_back(of_patches: Tensor, x: Tensor, stride: int) -> Tensor:
    """Adjoint of `_patches`: (N, h, w, 9, C) -> the shape of x."""
    count, height, width, _, channels = of_patches.shape
    # Summed in float32: nine roundings to bfloat16 would add up.
    total = of_patches.new_zeros(
        (count, x.shape[2] + 2, x.shape[3] + 2, channels), dtype=torch.promote_types(x.dtype, torch.float32)
    )
    for k, (rows, columns) in enumerate(_shifts(height, width, stride)):
        total[:, rows, columns] += of_patches[:, :, :, k]
    return total[:, 1:-1, 1:-1].permute(0, 3, 1, 2).to(x.dtype)
