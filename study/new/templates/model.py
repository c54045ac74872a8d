"""My model (AUTHORS YEAR, arXiv:NUMBER): one sentence that says what is special about it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainables.models.build import register
from trainables.models.classifier import Classifier


def block(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU. Nothing here may write into the maps that it receives."""
    conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


# min_size: the smallest images that it can work on, in pixels; smaller ones are refused before any work.
# default_width: leave it out, and the argument ``width`` below too, for a model of one fixed width.
@register("my_model", "one line for superft list models; any width (default 32)", min_size=8, default_width=32)
def my_model(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """Three stages with width, 2 and 4 x width channels; the second and third halve the maps.

    The parts of `Classifier` are what defenses address: ``stages`` (each from maps to maps), ``neck`` (from the last
    maps to vectors), one linear layer. Draw initial weights as PyTorch's layers do: `build_model` has seeded the global
    generator, which nothing may use later. So no dropout of torch's own: `PrivateDropout` of trainables.models.encoder.
    """
    stages = [
        nn.Sequential(block(3, width, 1), block(width, width, 1)),
        nn.Sequential(block(width, 2 * width, 2), block(2 * width, 2 * width, 1)),
        nn.Sequential(block(2 * width, 4 * width, 2), block(4 * width, 4 * width, 1)),
    ]
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, nn.Linear(4 * width, num_classes), mean, std)
