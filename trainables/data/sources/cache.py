"""Decoded images, kept as one checked uint8 file per set and size, which is mapped and not read."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.images import ImageSet, content_of, fingerprint_of
from trainables.data.sources.base import Channels, Raw, channel_statistics
from trainables.storage import mapped
from trainables.storage.files import locked
from trainables.storage.messages import one_line

logger = logging.getLogger(__name__)

SCHEMA = "3"  # 2: transparent images on white; remarks. 3: pixels in blocks, with the channels' statistics
# What the metadata takes beside class names and digests: remarks name at most five paths of 4096 bytes.
ROOM = 2**17


class Pixels:
    """Room for uint8 images (N, 3, size, size) that are decoded in parts."""

    def __init__(self, count: int, size: int) -> None:
        self._images = torch.empty(count, 3, size, size, dtype=torch.uint8)

    def put(self, at: int, images: np.ndarray[Any, Any]) -> None:
        """Images (M, 3, size, size) from position ``at`` on; several threads may, at other positions (OSError)."""
        self._images[at : at + len(images)] = torch.from_numpy(images)

    def whole(self) -> Tensor:
        """All of them, once they are there."""
        return self._images


class _FilePixels(Pixels):
    """In a file of which nothing need stay in memory; its room on the disk is taken at once (OSError)."""

    def __init__(self, count: int, size: int, file: int, classes: tuple[str, ...]) -> None:
        self._file, self._bytes = file, 3 * size * size
        layout = {"labels": (torch.int64, (count,)), "images": (torch.uint8, (count, 3, size, size))}
        self.spread = mapped.Spread.of(layout, ROOM + len(json.dumps(json.dumps(classes))))
        mapped.allocate(file, self.spread)

    def put(self, at: int, images: np.ndarray[Any, Any]) -> None:
        content = np.ascontiguousarray(images).reshape(-1).data
        mapped.put(self._file, content, self.spread.offsets["images"] + at * self._bytes)

    def whole(self) -> Tensor:
        return mapped.tensors_in(self._file, self.spread)["images"]


# (number of images, class names) -> room for them.
Room = Callable[[int, tuple[str, ...]], Pixels]


def cached(label: str, size: int, root: Path, stamp: str, read: Callable[[Room], Raw]) -> Raw:
    """``read(room)``, or what it returned before for the same stamp and size.

    The file holds uint8 pixels and labels (safetensors). Images are put into it while they are decoded; it is written
    aside and renamed, and checked when it is opened, see `storage.mapped`: a damaged one is named and made again. Of
    several processes that ask at once one decodes. A folder that cannot be written, or that the images do not fit into,
    costs the decoding at each start, in memory.

    Args:
        read: decodes all images into what ``room`` gives it, or returns a Raw that is in memory.
    """
    key = hashlib.sha256(f"{SCHEMA}\0{label}\0{size}\0{stamp}".encode()).hexdigest()[:20]
    path = root / "decoded" / f"{label}-{size}-{key}.safetensors"
    with suppress(OSError, mapped.DamagedError):  # dealt with below, where nobody else is at work on it
        return _load(path)
    with locked(path, required=False) as alone:
        if path.exists():  # another process may have made it meanwhile
            try:
                return _load(path)
            except (OSError, mapped.DamagedError) as error:
                logger.warning(
                    "decoded images %s are damaged or unreadable (%s): decoding again", path, one_line(error)
                )
        try:
            return _make(path, size, read, alone)
        except OSError as error:
            logger.warning("decoded images were not kept in %s (%s)", path.parent, one_line(error))
        return _known(read(lambda count, _: Pixels(count, size)))


def _load(path: Path) -> Raw:
    tensors, about = mapped.opened(path)
    labels, images = tensors["labels"], tensors["images"]
    try:
        count = int(about["training_images"])
        train, test = ImageSet(images[:count], labels[:count]), ImageSet(images[count:], labels[count:])
        remarks, (mean, std) = json.loads(about["remarks"]), json.loads(about["statistics"])
        classes = tuple(json.loads(about["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise mapped.DamagedError(f"its metadata is none of decoded images: {one_line(error)}") from error
    found = None if remarks is None else tuple(remarks)
    return Raw(train, test, classes, about["fingerprint"], found, (_channels(mean), _channels(std)))


def _make(path: Path, size: int, read: Callable[[Room], Raw], alone: bool) -> Raw:
    """Decode into a file (OSError: it could not be written); the images that are returned are mapped from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under the lock, what a process that was killed has left is written over.
    aside = path.with_name(f".{path.name}.{'part' if alone else uuid.uuid4().hex}")
    try:
        with aside.open("w+b") as file:
            places: list[_FilePixels] = []

            def room(count: int, classes: tuple[str, ...]) -> Pixels:
                places.append(_FilePixels(count, size, file.fileno(), classes))
                return places[-1]

            raw = read(room)
            if not places:  # it was in memory: the same bytes, put at once
                pixels = room(len(raw.train) + len(raw.test), raw.classes)
                for at, part in ((0, raw.train), (len(raw.train), raw.test)):
                    pixels.put(at, part.images.numpy())
            spread, raw = places[-1].spread, _known(raw)
            for at, part in ((0, raw.train), (len(raw.train), raw.test)):
                mapped.put(file.fileno(), content_of(part.labels), spread.offsets["labels"] + 8 * at)
            about = {
                "classes": json.dumps(raw.classes),
                "remarks": json.dumps(raw.remarks),
                "statistics": json.dumps(raw.statistics),
                "training_images": str(len(raw.train)),
                "fingerprint": str(raw.fingerprint),
            }
            mapped.seal(aside, file.fileno(), spread, about)
            os.replace(aside, path)
        return raw
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _known(raw: Raw) -> Raw:
    """With what takes a pass over all pixels."""
    found = replace(raw, fingerprint=fingerprint_of(raw.train, raw.test))
    return replace(found, statistics=channel_statistics(raw.train.images))


def _channels(values: list[float]) -> Channels:
    red, green, blue = map(float, values)
    return red, green, blue
