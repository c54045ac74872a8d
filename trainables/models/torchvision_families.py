"""Families from torchvision with a stem for small images, cut into stages, neck and one linear head.

The published stems shrink a 224-pixel image by 2-4 before the first block, which would leave nothing of 32 pixels.
Here every first convolution is 3x3 with stride 1 and there is no max-pool behind it, the change commonly made for
CIFAR, so that the last maps of a 32-pixel image are 4x4 (VGG: 2x2). Further changes are named at each function.

Dropout (MobileNetV2, VGG) and stochastic depth (ConvNeXt) are off: they draw from the global random state, and a trial
must depend on its own generator only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from trainables.models.build import register
from trainables.models.classifier import Classifier

if TYPE_CHECKING:
    from torchvision import models  # torchvision takes a second to import: each function does it when it is asked


def _pool() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _small_stem(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as the families' own first layer
    return conv


@register("resnet18", "ResNet-18 of torchvision with a small-image stem")
def resnet18(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """ResNet-18 (He et al. 2015, arXiv:1512.03385): activation after the sum, unlike ``preact_resnet18``."""
    from torchvision import models

    return _resnet(models.resnet18(weights=None, num_classes=num_classes), mean, std)


@register("resnet34", "ResNet-34 of torchvision with a small-image stem")
def resnet34(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """ResNet-34 (He et al. 2015): 3, 4, 6 and 3 blocks in place of ResNet-18's 2, 2, 2 and 2."""
    from torchvision import models

    return _resnet(models.resnet34(weights=None, num_classes=num_classes), mean, std)


def _resnet(net: models.ResNet, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    stem = nn.Sequential(_small_stem(64), net.bn1, net.relu)
    return Classifier([stem, net.layer1, net.layer2, net.layer3, net.layer4], _pool(), net.fc, mean, std)


@register("vgg19_bn", "VGG-19 with BatchNorm and one linear layer; 16 pixels or more", min_size=16)
def vgg19_bn(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """VGG-19 with BatchNorm (Simonyan & Zisserman 2014, arXiv:1409.1556), one linear layer in place of three.

    The three layers of the original hold 120 million weights for 7x7 maps that a small image does not have. A stage
    starts with the max-pool that ended the one before, so that the last maps keep 2x2 positions at 32 pixels; the fifth
    max-pool is global and is the neck. Needs 16 pixels or more: four poolings come before the last stage.
    """
    stages: list[nn.Module] = []
    in_channels = 3
    for channels, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        blocks: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(depth):
            conv = nn.Conv2d(in_channels, channels, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU()))
            in_channels = channels
        stages.append(nn.Sequential(*blocks))
    neck = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    return Classifier(stages, neck, _plain_head(in_channels, num_classes), mean, std)


def _plain_head(features: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(features, num_classes)
    nn.init.normal_(head.weight, 0.0, 0.01)
    nn.init.zeros_(head.bias)
    return head


@register("mobilenet_v2", "MobileNetV2 of torchvision with stride 1 in its first two groups, no dropout")
def mobilenet_v2(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381); the 24-channel group also keeps its resolution (stride 1).

    Stages: stem, the 16- and 24-channel groups, 32, 64 + 96, 160 + 320 + the last 1x1 convolution (1280 channels).
    """
    from torchvision import models

    groups = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    net = models.mobilenet_v2(weights=None, num_classes=num_classes, inverted_residual_setting=groups, dropout=0.0)
    layers = list(net.features)
    stem = nn.Sequential(_small_stem(32), *list(layers[0])[1:])
    stages = [stem] + [nn.Sequential(*layers[a:b]) for a, b in ((1, 4), (4, 7), (7, 14), (14, 19))]
    return Classifier(stages, _pool(), net.classifier[1], mean, std)


@register("densenet121", "DenseNet-121 of torchvision with a small-image stem")
def densenet121(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """DenseNet-121 (Huang et al. 2016, arXiv:1608.06993). A stage is a transition and the dense block behind it."""
    from torchvision import models

    net = models.densenet121(weights=None, num_classes=num_classes)
    parts = dict(net.features.named_children())
    stages = [
        nn.Sequential(_small_stem(64), parts["norm0"], parts["relu0"]),
        nn.Sequential(parts["denseblock1"]),
        nn.Sequential(parts["transition1"], parts["denseblock2"]),
        nn.Sequential(parts["transition2"], parts["denseblock3"]),
        nn.Sequential(parts["transition3"], parts["denseblock4"]),
    ]
    neck = nn.Sequential(parts["norm5"], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(stages, neck, net.classifier, mean, std)


@register("convnext_tiny", "ConvNeXt-Tiny of torchvision with a 3x3 stem; LayerNorm, no BatchNorm")
def convnext_tiny(num_classes: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """ConvNeXt-Tiny (Liu et al. 2022, arXiv:2201.03545): LayerNorm, no BatchNorm anywhere.

    The 4x4 patches of the stem become a 3x3 convolution with stride 1, still followed by its LayerNorm: 1.4 GMAC for a
    32-pixel image, 2.6 times PreAct-ResNet18. Stages: stem, then each downsampling with the blocks behind it.
    """
    from torchvision import models

    net = models.convnext_tiny(weights=None, num_classes=num_classes, stochastic_depth_prob=0.0)
    layers = list(net.features)
    conv = nn.Conv2d(3, 96, 3, padding=1)
    nn.init.trunc_normal_(conv.weight, std=0.02)  # ConvNeXt's own initialisation
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    stages = [nn.Sequential(conv, *list(layers[0])[1:]), layers[1]]
    stages += [nn.Sequential(*layers[i], *layers[i + 1]) for i in (2, 4, 6)]
    norm, flatten, head = net.classifier
    return Classifier(stages, nn.Sequential(net.avgpool, norm, flatten), head, mean, std)
