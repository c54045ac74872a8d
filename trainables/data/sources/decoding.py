"""Image files in, uint8 pixels out: many at once, and only once."""

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
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.data.images import DataError, ImageSet
from trainables.data.remarks import repeated
from trainables.data.sources.base import Raw
from trainables.data.sources.cache import Pixels, Room, cached
from trainables.data.sources.trees import Tree
from trainables.machine.cores import usable_cores
from trainables.storage.messages import one_line
from trainables.storage.progress import Progress

logger = logging.getLogger(__name__)

PART = 64  # images that a thread decodes at a time

# By content, whatever the ending says: those of `IMAGE_ENDINGS`, and GIF, which large sets hold under the name .jpg.
IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

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

    def read(room: Room) -> Raw:
        pixels = room(len(paths), classes)
        transparent = _decode(name, tree, paths, size, crop, pixels)
        images, n = pixels.whole(), len(train)
        first, second = ImageSet(images[:n], targets[:n]), ImageSet(images[n:], targets[n:])
        remarks = repeated(first, second, classes, paths.__getitem__)
        if transparent:
            count = "1 image has" if len(transparent) == 1 else f"{len(transparent)} of {len(paths)} images have"
            shown = f"{count} transparent pixels, shown on white, first {paths[transparent[0]]}"
            remarks = (shown, *remarks)
        return Raw(first, second, classes, remarks=remarks)

    # The classification is part of the key: the same files under another annotation are another set.
    layout = json.dumps([classes, targets.tolist(), len(train), crop])
    return cached(label, size, root, tree.stamp(paths) + layout, read)


def _decode(name: str, tree: Tree, paths: Sequence[str], size: int, crop: bool, pixels: Pixels) -> list[int]:
    """Put all images into ``pixels``, (N, 3, size, size); which of them are transparent somewhere?

    PIL decodes outside Python's lock, so a few threads use all cores.
    """
    logger.info("%s: decoding %d images from %s", name, len(paths), tree.label)
    bad: dict[int, str] = {}
    transparent: set[int] = set()

    def work(start: int) -> int:
        some = paths[start : start + PART]
        part = np.zeros((len(some), 3, size, size), dtype=np.uint8)
        for index, path in enumerate(some):
            try:
                part[index], seen_through = _pixels(tree.read(path), size, crop)
            except UNREADABLE as error:
                bad[start + index] = why(error)
            else:
                if seen_through:
                    transparent.add(start + index)
        pixels.put(start, part)
        return len(some)

    with ThreadPoolExecutor(min(16, usable_cores())) as pool:
        progress = Progress(f"{name}: decoded", "images", len(paths), logger.info)
        for done in pool.map(work, range(0, len(paths), PART)):  # raises what a thread raised
            progress.add(done)
    if bad:
        index, reason = min(bad.items())
        count = "1 image" if len(bad) == 1 else f"{len(bad)} of {len(paths)} images"
        raise DataError(
            f"{name}: {count} cannot be read, first {tree.label}/{paths[index]} ({reason}); remove or replace"
        )
    return sorted(transparent)


def why(error: Exception) -> str:
    """The reason of an unreadable image, for a message that names its path."""
    if isinstance(error, UnidentifiedImageError):  # PIL names the object in memory that the bytes were in
        return f"its content is none of {', '.join(IMAGE_FORMATS)}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return one_line(error)


def _pixels(data: bytes, size: int, crop: bool) -> tuple[np.ndarray[Any, Any], bool]:
    """One image file as uint8 (3, size, size): upright, RGB, bilinear (PIL's is antialiased); is it transparent?

    ``crop``: the shorter side becomes ``size`` and the centre is cut out; otherwise both sides are stretched to it.
    """
    with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as opened:
        if opened.mode[0] in "IF":
            # PIL would clip it to white, and what is black and white in it is known to its maker alone.
            raise ValueError(f"mode {opened.mode}: more than 8 bits per value, convert it to 8 bits")
        picture, transparent = _on_white(ImageOps.exif_transpose(opened))
    width, height = picture.size
    if crop and width != height:
        shorter = min(width, height)
        width, height = round(width * size / shorter), round(height * size / shorter)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    elif (width, height) != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).transpose(2, 0, 1), transparent


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """In RGB, with what is transparent (wholly or partly) laid on white; and whether anything was.

    Dropping the alpha channel instead, as ``convert("RGB")`` does, shows colours that nobody is meant to see, mostly
    black. An image that is opaque all over has the same pixels either way.
    """
    if picture.mode == "La":  # premultiplied grey, from TIFF
        picture = picture.convert("LA")
    if picture.mode not in ("LA", "PA", "RGBA", "RGBa") and "transparency" not in picture.info:
        return picture.convert("RGB"), False
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema() == (255, 255):
        return picture.convert("RGB"), False
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB"), True
