"""A small net that trains fast, after airbench94 (Jordan 2024, arXiv:2404.00498), in the form of every model here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.models.build import register
from trainables.models.classifier import Classifier
from trainables.models.convolution import Conv3x3

STEM = 24  # twice the 12 values of a 2x2 patch of three colours
# Jordan has 1/9, with biases that learn 64 times as fast; without those the loss fell more slowly under it.
LOGIT_SCALE = 1 / 3
# Below, the third pool has a single position left and nothing to halve: 2x2 stem, then 8 -> 4 -> 2 -> 1.
SMALLEST = 9


class Scale(nn.Module):
    """Vectors times a fixed number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors * self.factor


@register(
    "airbench_cnn",
    "small net of seven convolutions that trains in minutes on a CPU, after Jordan 2024; any width (default 64)",
    min_size=SMALLEST,
    default_width=64,
)
def airbench_cnn(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """Stages: a 2x2 stem of 24 channels, then three groups of two 3x3 convolutions (width, 4 and 4 x width channels).

    A group is convolution, BatchNorm, max-pool, ReLU, convolution, BatchNorm, ReLU; a global max-pool and one linear
    layer follow. At width 64 and 32 pixels a training step takes 0.73 GFLOP an image, PreAct-ResNet18 3.34.

    What differs from the source, and why:

    - BatchNorm stands right behind each convolution, before the pool: pruning and CLP work on such pairs. Its scales
      are trained, with PyTorch's momentum and epsilon.
    - ReLU in place of GELU. It may follow the pool: max-pool and ReLU give the same in either order, and a quarter of
      the values is left.
    - The stem is trained from PyTorch's default weights and has a BatchNorm and a ReLU of its own, no whitening: that
      needs the training images before the first step. A stand-in without data (an orthonormal basis of 2x2 colour
      patches, which BatchNorm scales to variance 1) showed no gain in the one run that was made.
    - The last pool rounds up, so that 16-pixel images keep 2x2 positions for attention maps (32 pixels: 4x4, not 3x3).
    - Half of a convolution's filters, at most, begin near the identity: their random weights plus one that copies a
      channel. Jordan makes as many as there are input channels the identity itself, the same for every seed.
    - The head has a bias, as every head here; the scale of the logits is in the neck, 1/3 in place of 1/9.
    - No alternating flip, Lookahead or faster biases, which are a training loop's business, and no test-time
      augmentation, which would be a defense.
    """
    stem = nn.Conv2d(3, STEM, 2, bias=False)
    stages: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))]
    in_channels = STEM
    for group, channels in enumerate((width, 4 * width, 4 * width)):
        pool = nn.MaxPool2d(2, ceil_mode=group == 2)
        stages.append(nn.Sequential(_block(in_channels, channels, pool), _block(channels, channels)))
        in_channels = channels
    neck = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scale(LOGIT_SCALE))
    return Classifier(stages, neck, nn.Linear(in_channels, num_classes), mean, std)


def _block(in_channels: int, channels: int, pool: nn.Module | None = None) -> nn.Sequential:
    conv = Conv3x3(in_channels, channels)
    copying = torch.arange(min(in_channels, channels // 2))
    with torch.no_grad():
        conv.weight[copying, copying, 1, 1] += 1.0
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(channels)]
    return nn.Sequential(*layers, *([pool] if pool is not None else []), nn.ReLU(inplace=True))
