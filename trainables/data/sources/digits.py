"""``digits``: real handwriting that needs no download (UCI optdigits, as scikit-learn ships it)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from trainables.data.images import ImageSet
from trainables.data.sources.base import Raw, Source, register

TEST_SIZE = 500


def _read(size: int, _root: Path, _download: bool) -> Raw:
    """scikit-learn's copy of the *test part* of UCI optdigits (Alpaydin & Kaynak 1998): real handwriting.

    1,797 real digits by 13 writers, 8x8 with values 0..16, here 0..255, bilinearly enlarged and three equal channels.
    Split into 1,297 training and 500 test images, stratified by class and always the same. Writers are not recorded, so
    both parts share them: the test accuracy is higher than on new writers.
    """
    from sklearn.datasets import load_digits  # here: slow to import, and only this set needs it

    digits = load_digits()
    labels = np.asarray(digits.target)
    pixels = torch.from_numpy(np.asarray(digits.images, dtype=np.float32)).unsqueeze(1) * (255 / 16)
    pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    images = pixels.round().clamp(0, 255).byte().expand(-1, 3, -1, -1).contiguous()
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[_stratified(labels.tolist(), TEST_SIZE)] = True
    targets = torch.from_numpy(labels).long()
    return Raw(
        ImageSet(images[~test], targets[~test]),
        ImageSet(images[test], targets[test]),
        tuple(str(digit) for digit in range(10)),
    )


def _stratified(labels: list[int], count: int) -> list[int]:
    """``count`` indices, each class in proportion (largest remainders), chosen by a hash of the index.

    A hash and not a random generator: the split must be the same under every version of every library.
    """
    members: dict[int, list[int]] = {}
    for index in sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"digits split {i}".encode()).digest()):
        members.setdefault(labels[index], []).append(index)
    exact = {label: count * len(indices) / len(labels) for label, indices in members.items()}
    take = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (take[label] - exact[label], label))
    for label in by_remainder[: count - sum(take.values())]:
        take[label] += 1
    return sorted(index for label, indices in members.items() for index in indices[: take[label]])


DIGITS = register(
    "digits",
    Source(
        description="1,797 real handwritten digits that ship with scikit-learn, 16 px; nothing to download",
        image_size=16,
        num_classes=10,
        flip=False,
        mean=None,
        std=None,
        read=_read,
        width=8,
        recipe="quick",
        files=(),
    ),
)
