"""Image files in, one uint8 tensor out: many at once, and only once."""

import io
import json
import logging
import struct
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainables.data.images import DataError, ImageSet
from trainables.data.sources.base import Raw
from trainables.data.sources.cache import cached
from trainables.data.sources.trees import Tree
from trainables.machine.cores import usable_cores
from trainables.storage.messages import one_line

logger = logging.getLogger(__name__)

IMAGE_FORMATS = ("JPEG", "PNG", "PPM")

# What PIL, zipfile and zlib raise on damaged files (PIL uses SyntaxError for broken PNG chunks).
UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def decoded(
    name: str,
    label: str,
    size: int,
    root: Path,
    tree: Tree,
    train: Sequence[tuple[str, int]],
    test: Sequence[tuple[str, int]],
    classes: tuple[str, ...],
    *,
    crop: bool,
) -> Raw:
    """The images of (path, label) lists, from the cache or through PIL; ``label`` begins the name of the cache file."""
    paths = [path for path, _ in (*train, *test)]
    targets = torch.tensor([target for _, target in (*train, *test)], dtype=torch.int64)

    def read() -> Raw:
        images = _decode(name, tree, paths, size, crop)
        n = len(train)
        return Raw(ImageSet(images[:n], targets[:n]), ImageSet(images[n:], targets[n:]), classes)

    # The classification is part of the key: the same files under another annotation are another set.
    layout = json.dumps([classes, targets.tolist(), len(train), crop])
    return cached(label, size, root, tree.stamp(paths) + layout, read)


def _decode(name: str, tree: Tree, paths: Sequence[str], size: int, crop: bool) -> Tensor:
    """uint8 (N, 3, size, size). PIL decodes outside Python's lock, so a few threads use all cores."""
    logger.info("%s: decoding %d images from %s", name, len(paths), tree.label)
    out = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    pixels = out.numpy()

    def work(start: int) -> list[tuple[int, str]]:
        bad = []
        for index in range(start, min(start + 64, len(paths))):
            try:
                pixels[index] = _pixels(tree.read(paths[index]), size, crop)
            except UNREADABLE as error:
                bad.append((index, one_line(error)))
        return bad

    with ThreadPoolExecutor(min(16, usable_cores())) as pool:
        bad = [failure for failures in pool.map(work, range(0, len(paths), 64)) for failure in failures]
    if bad:
        index, reason = bad[0]
        count = "1 image" if len(bad) == 1 else f"{len(bad)} of {len(paths)} images"
        raise DataError(
            f"{name}: {count} cannot be read, first {tree.label}/{paths[index]} ({reason}); remove or replace"
        )
    return out


def _pixels(data: bytes, size: int, crop: bool) -> np.ndarray[Any, Any]:
    """One image file as uint8 (3, size, size): upright, RGB, bilinear (PIL's is antialiased).

    ``crop``: the shorter side becomes ``size`` and the centre is cut out; otherwise both sides are stretched to it.
    """
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
        if opened.mode[0] in "IF":
            raise ValueError(f"mode {opened.mode}: more than 8 bits per value")  # PIL would clip it to white
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    width, height = picture.size
    if crop and width != height:
        shorter = min(width, height)
        width, height = round(width * size / shorter), round(height * size / shorter)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    elif (width, height) != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1)
