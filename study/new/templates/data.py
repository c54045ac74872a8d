"""My data (AUTHORS YEAR, URL): one sentence that says what is on the images and who labelled them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.data.sources.base import Raw, Source, image_set, register

CLASSES = ("horizontal", "vertical", "checked")


def read(size: int, root: Path, download: bool) -> Raw:
    """Training and test images at ``size`` pixels. Replace the drawing below by reading your files.

    Args:
        size: side of the images in pixels; `image_set` resizes square ones.
        root: folder of data files; look for yours in a folder of its own (root / "my_data").
        download: whether files that are missing may be fetched; without it nothing may.

    Labels are 0..K-1, positions in CLASSES. The same files must always give the same images in the same order: victims
    are stored under a hash of them. What the user can get wrong (files that are missing or damaged) ends in a
    ``DataError`` of trainables.data.images: one line with the path and what to do.
    """
    return Raw(image_set(*draw(300, seed=0), size), image_set(*draw(90, seed=1), size), CLASSES)


def draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Stripes in random colours: uint8 (count, 3, 16, 16) and labels, every class equally often."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    odd = np.arange(16) % 4 < 2
    across, down = np.broadcast_to(odd[:, None], (16, 16)), np.broadcast_to(odd[None, :], (16, 16))
    shapes = np.stack([across, down, across ^ down])[labels][:, None]
    dark, light = random.integers(0, 100, (count, 3, 1, 1)), random.integers(150, 256, (count, 3, 1, 1))
    noise = random.integers(-20, 21, (count, 3, 16, 16))
    return np.clip(np.where(shapes, light, dark) + noise, 0, 255).astype(np.uint8), labels


MY_DATA = register(
    "my_data",
    Source(
        description="one line for superft list datasets: what it is, how many images, how large",
        image_size=16,  # side in pixels where the user asks for none
        num_classes=len(CLASSES),  # another number found in the files is refused as incomplete
        flip=False,  # whether a mirrored image keeps its label: training then mirrors at random
        mean=None,  # per channel, in units of [0, 1]; None: measured on the training images
        std=None,
        read=read,
        width=8,  # of a model whose width can be set, where a study says nothing: small pictures need a small one
        recipe="quick",  # how victims are trained where a study says nothing
    ),
)
