"""Where data sets come from: names and ``folder:PATH`` in, uint8 images and labels out.

A data set is one registered ``Source``, in the file named after it (CIFAR, SVHN and STL-10: ``torchvision_sets``).
Nothing here fetches anything unless ``download`` is set. Sets that are slow to read are decoded once and
kept as a checked uint8 file; everything a user can get wrong ends in one line of ``DataError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainables.data.images import DataError, Dataset, ImageSet, fingerprint_of
from trainables.data.remarks import check_variety, repeated, tell
from trainables.data.sources.base import MIN_IMAGE_SIZE, SOURCES, Channels, Raw, channel_statistics
from trainables.data.sources.folders import FOLDER, read_folder
from trainables.registry import SettingError, nearest
from trainables.storage.files import cache_folder


def default_root() -> Path:
    """Folder of data files: SUPERFT_DATA, or ``superft/data`` in the user's cache folder."""
    return cache_folder("SUPERFT_DATA", "data")


def load_dataset(
    name: str,
    *,
    image_size: int | None = None,
    root: Path | None = None,
    download: bool = False,
    flip: bool | None = None,
) -> Dataset:
    """Data set ``name`` on the CPU.

    Args:
        name: a registered one, or ``folder:PATH`` with PATH/train/CLASS/* and PATH/test/CLASS/*, where PATH may be a
            zip file with the same layout; see `read_folder`.
        image_size: side in pixels, 8 or more. Default: the source's own; for a folder the shorter side of the first
            training image, at least 8 and at most 64.
        root: where files lie and decoded copies are kept; default ``default_root()``. It may be a folder that
            torchvision has filled.
        download: fetch what is missing, for the sets that torchvision can fetch.
        flip: of a folder: whether training mirrors half of the images. Default: it does, as for the known sets of
            photographs, so that CIFAR-10 in a folder is the task that ``cifar10`` is. False where left and right
            matter: digits, letters, traffic signs. The known sets say it themselves, and nothing else is allowed.

    Raises:
        DataError: unknown name, bad size, missing or damaged files, or a folder that is no classification task.
    """
    if image_size is not None and (isinstance(image_size, bool) or image_size < MIN_IMAGE_SIZE):
        raise DataError(f"image_size: must be {MIN_IMAGE_SIZE} pixels or more, got {image_size}")
    root = default_root() if root is None else Path(root).expanduser()
    mean: Channels | None = None
    std: Channels | None = None
    mirrored = flip is not False
    if flip is not None and not name.startswith(FOLDER) and name in SOURCES:
        raise DataError(f"flip is of {FOLDER}PATH alone, {name} knows by itself whether it is mirrored; leave it out")
    if name.startswith(FOLDER):
        raw = read_folder(name, image_size, root)
    elif name in SOURCES:
        source = SOURCES.get(name)
        raw = source.read(image_size or source.image_size, root, download)
        if len(raw.classes) != source.num_classes:
            raise DataError(
                f"{name}: found {len(raw.classes)} classes in {root}, expected {source.num_classes}; "
                "the copy is incomplete, unpack it again"
            )
        mean, std, mirrored = source.mean, source.std, source.flip
    else:
        raise DataError(unknown(name))
    _check(name, raw)
    tell(name, _remarks(raw))
    check_variety(name, "training", raw.train)
    check_variety(name, "test", raw.test)
    if mean is None or std is None:
        mean, std = raw.statistics or channel_statistics(raw.train.images)
    return Dataset(
        name=name,
        train=raw.train,
        test=raw.test,
        classes=raw.classes,
        mean=mean,
        std=std,
        flip=mirrored,
        fingerprint=raw.fingerprint or fingerprint_of(raw.train, raw.test),
    )


def _check(name: str, raw: Raw) -> None:
    """Refuse what is no classification task of square images (DataError)."""
    train, test, classes = raw.train, raw.test, len(raw.classes)
    for part, images in (("training", train), ("test", test)):
        if len(images) == 0:
            raise DataError(f"{name}: no {part} images")
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"{name}: {part} labels must be 0 to {classes - 1} (positions in the list of {classes} classes), "
                f"got {low} to {high}"
            )
    sides = {tuple(images.images.shape[2:]) for images in (train, test)}
    if len(sides) > 1 or any(height != width for height, width in sides):
        raise DataError(f"{name}: all images must be squares of one size, got {sorted(sides)}")


def _remarks(raw: Raw) -> tuple[str, ...]:
    """What the source remarked, else on images that occur twice, known by their places."""
    if raw.remarks is not None:
        return raw.remarks
    count = len(raw.train)

    def place(index: int) -> str:
        return f"training image {index}" if index < count else f"test image {index - count}"

    return repeated(raw.train, raw.test, raw.classes, place)


def unknown(name: str) -> str:
    """The message for a name that is no data set, in one line."""
    if name and Path(name).expanduser().exists():
        return f"unknown dataset {name!r}: did you mean '{FOLDER}{name}'?"
    try:
        SOURCES.get(name)
    except SettingError as error:  # a file that could not be loaded, perhaps
        if "cannot be loaded" in str(error):
            return str(error)
    return f"unknown dataset {name!r}: {nearest(name.lower(), [*SOURCES.names(), f'{FOLDER}PATH'])}"


def outline(name: str, image_size: int | None = None) -> Dataset | None:
    """A stand-in for a registered data set that is not here, for planning: its sizes and classes, and no pictures.

    All classes are taken as equally large. None where ``name`` is not registered or its sizes are not known.
    """
    if name not in SOURCES.names() or (source := SOURCES.get(name)).sizes is None:
        return None
    size = image_size or source.image_size
    parts = []
    for count in source.sizes:
        # One grey pixel, seen at every place: no memory is taken.
        pictures = torch.full((1, 1, 1, 1), 128, dtype=torch.uint8).expand(count, 3, size, size)
        parts.append(ImageSet(pictures, torch.arange(count) % source.num_classes))
    classes = tuple(str(label) for label in range(source.num_classes))
    grey = (0.5, 0.5, 0.5)
    return Dataset(name, parts[0], parts[1], classes, grey, (1.0, 1.0, 1.0), source.flip, f"outline of {name}")


@dataclass(frozen=True)
class DataSource:
    """Where images come from; see `load_dataset`."""

    name: str
    image_size: int | None = None
    root: Path | None = None
    download: bool = False
    flip: bool | None = None

    def load(self) -> Dataset:
        """The data set (DataError)."""
        return load_dataset(
            self.name, image_size=self.image_size, root=self.root, download=self.download, flip=self.flip
        )
