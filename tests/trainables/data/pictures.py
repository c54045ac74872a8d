"""Small image files for the tests of data sets."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.data.images import DataError, Dataset
from trainables.data.load import load_dataset

Pixels = np.ndarray[Any, Any]


def noise(seed: int, height: int = 12, width: int = 12) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, pixels: Pixels, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def refused(name: str, root: Path, **arguments: Any) -> str:
    """The message of the DataError that loading ends in; always a single line."""
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=root, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def zipped(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return target


def remove(path: Path) -> None:
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()


def same(a: Dataset, b: Dataset) -> bool:
    """Whether two data sets are the same to the last pixel."""
    pairs = ((a.train, b.train), (a.test, b.test))
    equal = all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs)
    return equal and (a.classes, a.mean, a.std, a.fingerprint) == (b.classes, b.mean, b.std, b.fingerprint)
