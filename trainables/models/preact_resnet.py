"""PreAct-ResNet18 for small images (He et al. 2016, arXiv:1603.05027), in the layout of BackdoorBench."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.models.build import register
from trainables.models.classifier import Classifier
from trainables.models.convolution import Conv3x3


class Shortcut(nn.Conv2d):
    """1x1 convolution without bias that takes its stride by slicing where channels are few.

    The backward pass of oneDNN's strided 1x1 convolution writes out of bounds for fewer than 16 input channels on large
    maps (torch 2.15, float32, channels_last: a segmentation fault with 8 at 56 pixels, with 15 at 112). With more
    channels it was never seen, and slicing costs 1.7 times as much there (64 channels, on a CPU).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= 16:
            return super().forward(x)
        down, across = self.stride
        return functional.conv2d(x[:, :, ::down, ::across], self.weight)


class PreActBlock(nn.Module):
    """Basic block with BN and ReLU *before* each 3x3 convolution.

    With a = ReLU(BN(x)): out = conv(ReLU(BN(conv(a)))) + shortcut, where the shortcut is x itself, or conv1x1(a) when
    the shape changes. (A post-activation block, as in ``resnet18``, ends with a ReLU after the sum; this one does not.)
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels)
        self.shortcut: Shortcut | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = Shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu_(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(a)
        out: Tensor = self.conv2(torch.relu_(self.bn2(self.conv1(a))))
        return out + skip


@register("preact_resnet18", "PreAct-ResNet18, the paper's model; any width (default 64)", default_width=64)
def preact_resnet18(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """Stages: stem, then four of two blocks with width, 2, 4 and 8 x width channels; stages 2-4 halve the maps.

    The last block is followed by the pool with no BN or ReLU in between, as in BackdoorBench (the 2016 paper has them):
    the features may be negative. Initialisation is PyTorch's default, as there.
    """
    stages: list[nn.Module] = [nn.Sequential(Conv3x3(3, width))]
    in_channels = width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        channels = factor * width
        stages.append(
            nn.Sequential(PreActBlock(in_channels, channels, stride), PreActBlock(channels, channels, stride=1))
        )
        in_channels = channels
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(in_channels, num_classes), mean, std)
