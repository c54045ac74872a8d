"""Channels of batch normalisation: which convolution feeds them, and how far each can amplify (arXiv:2208.03111)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainables.models.classifier import Classifier


def batch_norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations with a scale and a shift, by module name, in module order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    }


@dataclass(frozen=True)
class ConvNorm:
    """A batch normalisation and the convolution before it, by module name.

    ``direct``: its input is that convolution's output, and nothing else. Otherwise other tensors were added, or it was
    pooled, on the way.
    """

    conv: str
    norm: str
    direct: bool


@torch.no_grad()
def trace_convolutions(model: Classifier) -> tuple[list[ConvNorm], list[str]]:
    """The conv -> BatchNorm pairs of a model, and its convolutions in the order in which they run.

    Found by running one grey image through it (one forward sample, for the caller to count) and looking at which
    tensor each layer really received. Module order would mislead: in a pre-activation net the layer listed before a BN
    may be the 1x1 shortcut, while the BN's input is a sum. A BN whose input is no convolution's own output is paired,
    as not direct, with the last convolution that ran, unless the number of channels differs or that one has a BN of
    its own; BNs without a partner are left out.
    """
    pairs, order, taken = list[ConvNorm](), list[str](), set[str]()
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    outputs = dict[int, tuple[str, Tensor, int]]()  # holds the tensors, so that no id is used twice

    def ran(name: str, output: Tensor) -> None:
        order.append(name)
        outputs[id(output)] = (name, output, output._version)

    def normalises(name: str, norm: nn.modules.batchnorm._BatchNorm, received: Tensor) -> None:
        conv, _, version = outputs.get(id(received), ("", received, -1))
        if version == received._version:  # otherwise changed in place since, by a ReLU for one
            pairs.append(ConvNorm(conv, name, direct=True))
            taken.add(conv)
        elif order and order[-1] not in taken and convolutions[order[-1]].out_channels == norm.num_features:
            pairs.append(ConvNorm(order[-1], name, direct=False))

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: ran(name, output))
        for name, module in convolutions.items()
    ]
    hooks += [
        norm.register_forward_pre_hook(lambda norm, inputs, name=name: normalises(name, norm, inputs[0]))
        for name, norm in batch_norms(model).items()
    ]
    try:
        model.eval()
        model(torch.full((1, 3, model.probe_size, model.probe_size), 0.5, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs, order


@torch.no_grad()
def lipschitz_bounds(model: nn.Module, pair: ConvNorm) -> Tensor:
    """How far each channel of ``pair`` can amplify what enters its convolution, >= 0, float64 (C,).

    Of channel k it is |gamma_k| / sqrt(var_k + eps) times the largest singular value of the kernel W_k as a C_in x k^2
    matrix, with the running variance (Zheng et al. 2022, who leave eps out).
    """
    norm = model.get_submodule(pair.norm)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None, f"{pair.norm} has no running variance"
    gain = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    return spectral_norms(model.get_parameter(f"{pair.conv}.weight")) * gain


def spectral_norms(kernels: Tensor) -> Tensor:
    """Largest singular value of every output channel's kernel, float64 (C_out,), of (C_out, C_in, k, k).

    From the eigenvalues of the smaller Gram matrix, k^2 x k^2 or C_in x C_in, of all channels at once: a batched SVD of
    the kernels themselves takes many times as long, and the largest value is accurate either way.
    """
    matrices = kernels.double().flatten(2)
    transposed = matrices.transpose(1, 2)
    gram = transposed @ matrices if matrices.shape[2] <= matrices.shape[1] else matrices @ transposed
    largest: Tensor = torch.linalg.eigvalsh(gram)[:, -1]
    return largest.clamp(min=0.0).sqrt()


def outliers(bounds: Tensor, u: float) -> Tensor:
    """Bool (C,): which of a layer's bounds exceed their mean by more than ``u`` standard deviations."""
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + u * bounds.std()
