"""ResNet-18 as a self-supervised encoder with the downstream head of BadEncoder on it (Jia et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.machine.transfer import sent_ahead
from trainables.models.build import register
from trainables.models.classifier import Classifier
from trainables.models.preact_resnet import Shortcut

HIDDEN, FEATURES = 512, 256


class UnitLength(nn.Module):
    """Vectors (N, D) scaled to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        # In float32: a bfloat16 length would differ by a percent from what fixed embeddings are trained with.
        return functional.normalize(vectors.float(), dim=1)


class PrivateDropout(nn.Module):
    """Dropout whose masks come from a random stream of its own: a trial must not depend on global state.

    Copies of a module go on drawing where it stood. The stream is no part of the state dict.

    Args:
        rate: share of the values set to 0 in training mode, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate, self.generator = rate, torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape, generator=self.generator) >= self.rate
        return x * sent_ahead(kept, x.device).to(x.dtype) / (1.0 - self.rate)


def seed_dropout(model: nn.Module, generator: torch.Generator) -> None:
    """Start the stream of every `PrivateDropout` in ``model`` anew: it comes from no state dict, and at 0 otherwise."""
    for layer in model.modules():
        if isinstance(layer, PrivateDropout):
            layer.generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))


class EncoderClassifier(Classifier):
    """An encoder under a multi-layer head: ``embed`` are its pooled vectors, ``features`` the head's last hidden layer.

    Args:
        mlp: the head without its last layer, from vectors to the inputs of ``classifier``.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        neck: nn.Module,
        mlp: nn.Module,
        classifier: nn.Linear,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(stages, neck, classifier, mean, std)
        self.mlp = mlp

    @property
    def head(self) -> list[nn.Module]:
        return [self.mlp, self.classifier]

    def reset_head(self, generator: torch.Generator) -> None:
        """Initialise the head anew, and its dropout's stream, from ``generator`` alone."""
        super().reset_head(generator)
        seed_dropout(self.mlp, generator)

    def head_features(self, vectors: Tensor) -> Tensor:
        features: Tensor = self.mlp(vectors)
        return features


@register(
    "encoder_resnet18",
    "ResNet-18 as an encoder under BadEncoder's downstream head; any width (default 64)",
    default_width=64,
)
def encoder_resnet18(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> EncoderClassifier:
    """ResNet-18 without max-pool, behind a 3x3 stem of stride 1, under the head of BadEncoder's evaluation.

    Head: vectors of length 1, Linear(8 width, 512), ReLU, dropout 0.5, Linear(512, 256), ReLU, Linear(256, K). The
    embeddings are what the global pool gives, before their length is taken away. Stages as in ``preact_resnet18``: the
    stem, then four of two blocks with width, 2, 4 and 8 x width channels.
    """
    from torchvision.models.resnet import BasicBlock  # here: torchvision takes a second to import

    stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
    stages: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU(inplace=True))]
    in_channels = width
    for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        channels = factor * width
        down = None
        if in_channels != channels:
            down = nn.Sequential(Shortcut(in_channels, channels, stride), nn.BatchNorm2d(channels))
        stages.append(nn.Sequential(BasicBlock(in_channels, channels, stride, down), BasicBlock(channels, channels)))
        in_channels = channels
    for stage in stages:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mlp = nn.Sequential(
        UnitLength(),
        nn.Linear(in_channels, HIDDEN),
        nn.ReLU(),
        PrivateDropout(0.5),
        nn.Linear(HIDDEN, FEATURES),
        nn.ReLU(),
    )
    return EncoderClassifier(stages, neck, mlp, nn.Linear(FEATURES, num_classes), mean, std)
