"""Images as uint8 tensors: labelled sets, triggered sets, data sets, and augmentation of whole batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class TriggeredSet:
    """Triggered test images, stored once per victim, with both labels.

    Args:
        images: uint8, (M, 3, H, W), already quantised.
        labels: true labels, int64, (M,).
        targets: labels the attacker wants, int64, (M,); differ from ``labels`` everywhere.
        sources: positions in the clean test set, int64, (M,).
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    sources: Tensor

    def __post_init__(self) -> None:
        if bool((self.labels == self.targets).any()):
            raise ValueError("the triggered set must leave out images that already have the target label")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> TriggeredSet:
        """The same set on ``device``."""
        return TriggeredSet(
            self.images.to(device), self.labels.to(device), self.targets.to(device), self.sources.to(device)
        )


class DataError(ValueError):
    """A data set that is missing, unreadable or unusable; the message is one clear line."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Args:
        images: uint8, (N, 3, H, W), values 0..255.
        labels: int64, (N,), values 0..K-1.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            raise DataError(f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"labels must be int64 ({len(self.images)},), got {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width in pixels; images are square."""
        return int(self.images.shape[-1])

    @property
    def inputs(self) -> Tensor:
        """What a model is trained on: the images."""
        return self.images

    def subset(self, indices: Tensor) -> ImageSet:
        """Copy of the samples at ``indices`` (int64, any shape (M,)), in that order."""
        indices = indices.to(self.images.device)
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on ``device``; itself when it is there already."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class FeatureSet:
    """Fixed features, float32 (N, D), with labels int64 (N,): what a classifier alone is trained on."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A classification task: training and test set with what is known about them.

    Args:
        name: as the user wrote it (``cifar10``, ``folder:/data/mine``).
        train: the attacker's whole training set, clean.
        test: the test set, clean.
        classes: class names; the label is the position.
        mean: per channel, in [0, 1] units; models normalise with it.
        std: likewise.
        flip: whether a horizontal flip keeps the label (training augmentation).
        fingerprint: hash of all pixels and labels; part of every victim's key.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.train.image_size


def fingerprint_of(train: ImageSet, test: ImageSet) -> str:
    """Hex digest over the pixels and labels of both sets; the same data under another path has the same one."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (train, test):
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(content_of(part.images))
        digest.update(content_of(part.labels))
    return digest.hexdigest()


def content_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, for a digest; of one that lies so on the CPU they are no copy."""
    return tensor.contiguous().cpu().numpy().reshape(-1).data


def in_parts(images: Tensor, most: int = 1024) -> tuple[Tensor, ...]:
    """Images (N, 3, H, W) in parts of at most ``most``, and of at most 2**22 pixels: 1,024 of 64 x 64, 83 of 224 x 224.

    So that what is made of a part, a float copy or a model's activations, takes no more memory with larger images.
    """
    each = min(most, PIXELS_AT_ONCE // images[0, 0].numel()) if len(images) else most
    parts: tuple[Tensor, ...] = images.split(max(1, each))
    return parts


def labelled_parts(data: ImageSet, most: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels in the parts of `in_parts`."""
    parts = in_parts(data.images, most)
    return zip(parts, data.labels.split([len(part) for part in parts]), strict=True)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1], same shape, in channels-last memory (what convolutions want)."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255.0)


def quantise(images: Tensor) -> Tensor:
    """Float in [0, 1] -> uint8 by truncation, the field's convention (BackdoorBench casts, it does not round).

    The thousandth of a grey level undoes float32 rounding: without it k / 255 * 255 truncates to k - 1 for some k
    and pixels that no trigger touched would change.
    """
    return images.mul(255.0).add_(1e-3).clamp_(0.0, 255.0).to(torch.uint8)


def augment(images: Tensor, offsets: Tensor, flips: Tensor | None, *, padding: int) -> Tensor:
    """Random crop (zero padding) and horizontal flip of a uint8 batch, each sample with its own draw.

    Args:
        images: uint8, (N, 3, H, W).
        offsets: int64, (N, 2), row and column of the crop in 0..2*padding.
        flips: bool, (N,), or None for no flips.
        padding: pixels of black added on every side.
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    rows = torch.arange(height, device=images.device) + offsets[:, :1]
    columns = torch.arange(width, device=images.device) + offsets[:, 1:]
    if flips is not None:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    batch = torch.arange(count, device=images.device)[:, None, None]
    picked: Tensor = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
