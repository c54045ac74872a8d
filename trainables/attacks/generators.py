"""The encoder-decoder that input-aware triggers are drawn with (Nguyen & Tran 2020, arXiv:2010.08138)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBlock(nn.Sequential):
    """3x3 convolution with bias, batch normalisation and, unless it is the last, ReLU."""

    def __init__(self, in_channels: int, channels: int, *, activate: bool = True) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels, momentum=0.05),
        ]
        super().__init__(*layers, *([nn.ReLU()] if activate else []))


class Generator(nn.Module):
    """Normalised images (N, 3, H, W) -> pictures (N, out, H, W) in [0, 1], of any size from 4 pixels.

    Each level has two convolutions and a max-pool on the way down and the mirror image, with bilinear upsampling,
    on the way up; there are no skip connections, so the picture depends on the image only through its smallest maps.

    Args:
        out_channels: 3 for a pattern, 1 for a mask.
        width: channels of the first level; each further level has twice as many.
        levels: 3 for 32 pixels in the reference code, 2 for 28.
        generator: the only source of the initial weights; without one they are those of seed 0, for networks that are
            about to be loaded. PyTorch's global generator is put back afterwards.
    """

    def __init__(self, out_channels: int, width: int, levels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            channels = [width * 2**level for level in range(levels)]
            inputs = [3, *channels[:-1]]
            self.down = nn.ModuleList(
                nn.Sequential(ConvBlock(i, c), ConvBlock(c, c)) for i, c in zip(inputs, channels, strict=True)
            )
            self.middle = ConvBlock(channels[-1], channels[-1])
            outputs = [out_channels, *channels[:-1]]
            self.up = nn.ModuleList(
                nn.Sequential(ConvBlock(c, c), ConvBlock(c, o, activate=level > 0))
                for level, (c, o) in reversed(list(enumerate(zip(channels, outputs, strict=True))))
            )

    def forward(self, images: Tensor) -> Tensor:
        maps, sizes = images, []
        for block in self.down:
            maps = block(maps)
            sizes.append(maps.shape[-2:])
            maps = functional.max_pool2d(maps, 2)
        maps = self.middle(maps)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            # To the size it came from rather than twice its own: that also holds for odd sizes.
            maps = block(functional.interpolate(maps, size=size, mode="bilinear", align_corners=False))
        return squash(maps)


def squash(values: Tensor) -> Tensor:
    """Real numbers -> [0, 1], in float32 (where the 1e-7 that the reference code adds to the 2 is nothing)."""
    return torch.tanh(values.float()) / 2.0 + 0.5
