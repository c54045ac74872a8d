"""A small vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) in the form of every model here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.models.build import register
from trainables.models.classifier import Classifier

PATCH = 4  # 64 positions of 32 pixels, 16 of 16
HEADS = 4
GROUPS = (2, 2, 2)  # blocks a stage
# The lowest frequency of the positions goes once around in some 10,000 patches, as in Vaswani et al. 2017.
SLOWEST = 10_000.0


class Patches(nn.Module):
    """Maps of one vector per patch, with the place of the patch added.

    The places are fixed sines and cosines of row and column, so any size of image has them (as in Beyer et al. 2022,
    arXiv:2205.01580). A rim narrower than a patch is not seen.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, channels, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.project(images)
        _, channels, height, width = maps.shape
        return maps + places(channels, height, width).to(maps)


class Block(nn.Module):
    """Self-attention among all positions, then two layers at each, both on normalised maps and added to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self.attend(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        back: Tensor = tokens.transpose(1, 2).reshape(maps.shape)
        return back

    def attend(self, tokens: Tensor) -> Tensor:
        """Each position's mixture of what all positions offer: (N, T, C) -> (N, T, C).

        Written out: torch's fused attention has no second derivative, which defenses of two levels (`ibau`) take.
        """
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class MeanPosition(nn.Module):
    """LayerNorm, then the mean over all positions: maps (N, C, H, W) -> vectors (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        vectors: Tensor = self.norm(maps.flatten(2).transpose(1, 2)).mean(1)
        return vectors


@register(
    "vit_small",
    "small vision transformer on patches of 4 pixels; LayerNorm, no BatchNorm; any width (of a head, default 48)",
    default_width=48,
)
def vit_small(num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """Stages: the patches, then three of two blocks; 4 heads of ``width`` channels each, 192 in all by default.

    That is as wide as the published ViT-Ti (Touvron et al. 2020, arXiv:2012.12877) with half of its blocks and patches
    of 4 pixels in place of 16. In place of a class token all positions are averaged, and the places are fixed (Beyer et
    al. 2022, arXiv:2205.01580), so that a stage has maps like everywhere else and any size of image fits. All maps have
    one size. No dropout: it draws from the global random state.
    """
    channels = HEADS * width
    stages: list[nn.Module] = [Patches(channels)]
    stages += [nn.Sequential(*(Block(channels) for _ in range(depth))) for depth in GROUPS]
    return Classifier(stages, MeanPosition(channels), nn.Linear(channels, num_classes), mean, std)


def places(channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of row and column at falling rates, (channels, height, width); channels divisible by 4."""
    rates = SLOWEST ** -(torch.arange(channels // 4) / (channels // 4))
    rows, columns = (torch.arange(length)[None] * rates[:, None] for length in (height, width))
    of_rows = torch.cat([rows.sin(), rows.cos()])[:, :, None].expand(-1, -1, width)
    of_columns = torch.cat([columns.sin(), columns.cos()])[:, None].expand(-1, height, -1)
    return torch.cat([of_rows, of_columns])
