"""What every source is made of: its description, the images it reads, and their resizing and statistics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainables.data.archives import Archive
from trainables.data.images import ImageSet, in_parts
from trainables.registry import Registry

Channels = tuple[float, float, float]

MIN_IMAGE_SIZE = 8


@dataclass(frozen=True)
class Raw:
    """Decoded images of a source.

    Args:
        train, test, classes: as in `Dataset`.
        fingerprint: set when reading had to compute it anyway.
        remarks: what users must be told, one line each; None: not looked for.
        statistics: `channel_statistics` of the training images, where they were computed before; None: not yet.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    fingerprint: str | None = None
    remarks: tuple[str, ...] | None = None
    statistics: tuple[Channels, Channels] | None = None


@dataclass(frozen=True)
class Source:
    """A data set known by name.

    Args:
        description: one line for ``superft list datasets``.
        image_size: default side of the square images, in pixels.
        num_classes: a set that turns out to have another number is refused as incomplete.
        flip: whether a mirrored image keeps its label and training mirrors at random. BackdoorBench mirrors only
            CIFAR-10 of its three sets; we add the other sets of natural photographs.
        mean, std: per channel in units of [0, 1] pixels; None: measured on the training pixels as loaded.
        read: (image_size, root, download) -> images.
        width: channels of a model whose width can be set, where the spec says nothing; None: the model's own. Small
            pictures are learned by a small model.
        recipe: how victims are trained where the spec says nothing; None: ``bb``.
        sizes: training and test images, where they are known beforehand: a study can then be planned where the data
            set is not.
        files: what lies below the root where the set is there, as patterns (``*``): each must be found. () where it
            needs no files; None: not known without reading it.
        archives: gives the published files that `read` unpacks; None: they cannot be fetched.
    """

    description: str
    image_size: int
    num_classes: int
    flip: bool
    mean: Channels | None
    std: Channels | None
    read: Callable[[int, Path, bool], Raw]
    width: int | None = None
    recipe: str | None = None
    sizes: tuple[int, int] | None = None
    files: tuple[str, ...] | None = None
    archives: Callable[[], tuple[Archive, ...]] | None = None


SOURCES: Registry[Source] = Registry("dataset", "trainables.data.sources")
register = SOURCES.add


def image_set(images: np.ndarray[Any, Any], labels: Sequence[int] | np.ndarray[Any, Any], size: int) -> ImageSet:
    """From uint8 (N, 3, H, H) and any integer labels."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return ImageSet(_resized(tensor, size), torch.tensor(np.asarray(labels), dtype=torch.int64))


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, H) at ``size`` pixels: bilinear, antialiased when shrinking, rounded. No copy at equal size."""
    if images.shape[-1] == size:
        return images.contiguous()
    out, done = torch.empty(len(images), 3, size, size, dtype=torch.uint8), 0
    for part in in_parts(images):
        wide = functional.interpolate(
            part.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        out[done : done + len(part)] = wide.round().clamp(0, 255).byte()
        done += len(part)
    return out


def channel_statistics(images: Tensor) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel, in units of [0, 1], of uint8 images (N, 3, H, W).

    In parts, because a float copy of a large set would not fit, and from exact sums: the squares of uint8 values are
    whole numbers in float32, and their total in float64. A channel without any variation gets std 1.
    """
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for part in map(Tensor.float, in_parts(images)):
        total += part.sum((0, 2, 3), dtype=torch.float64)
        squares += part.square().sum((0, 2, 3), dtype=torch.float64)
    count = images.numel() / 3
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 255.0
    m, s = (mean / 255).tolist(), (std / 255).tolist()
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])
