"""The user's own clean images: a folder of classes or an .npz file, checked against the model's classes, and split."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.images import DataError, ImageSet, content_of
from trainables.data.load import default_root
from trainables.data.remarks import check_variety, tell
from trainables.data.sources.base import MIN_IMAGE_SIZE, image_set
from trainables.data.sources.class_folders import class_folders
from trainables.data.sources.decoding import IMAGE_FORMATS, UNREADABLE, decoded, why
from trainables.data.sources.parts import find_part, listed
from trainables.data.sources.trees import Tree, images_below, open_tree
from trainables.data.split import split_clean
from trainables.seeding import derive_seed
from trainables.storage.messages import one_line

HELD_OUT = 0.2  # of every class: what no repair sees, and the result is measured on
# Fewer images leave no held-out part worth the name: of ten, a model that is right on eight may be right on 49 to 94 %.
MIN_IMAGES, MIN_PER_CLASS = 50, 3
MAX_ARRAY_BYTES = 16 * 2**30
MAX_ARRAY_MEMBERS = 64
MOST_CLASSES = 10**6  # of no classifier of images; a label beyond is a mistake, and names of so many would fill memory
LAYOUTS = "images uint8 (N, H, W, 3) or (N, 3, H, W), labels integers (N,)"


@dataclass(frozen=True)
class CleanImages:
    """What a user holds.

    Args:
        images: all of them; labels are positions in ``classes``.
        classes: names, in the order of the model's outputs.
        origin: where they come from, for people.
    """

    images: ImageSet
    classes: tuple[str, ...]
    origin: str

    @property
    def fingerprint(self) -> str:
        """Hex digest of pixels and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.images.shape)).encode())
        digest.update(content_of(self.images.images))
        digest.update(content_of(self.images.labels))
        return digest.hexdigest()


@dataclass(frozen=True)
class Parts:
    """A user's images in three disjoint parts, each with all classes; the repair is given the first two alone."""

    train: ImageSet
    validation: ImageSet
    held_out: ImageSet


def from_arrays(
    images: Any, labels: Any, classes: Sequence[str] | None = None, *, origin: str = "images"
) -> CleanImages:
    """Images and labels of the caller.

    Args:
        images: uint8, (N, 3, H, W) or (N, H, W, 3), array or tensor; square. Float images in [0, 1] are rounded.
        labels: integers (N,), positions of the model's outputs.
        classes: names of the outputs; default their numbers.

    Raises:
        DataError: another shape, type or range.
    """
    pixels = _pixels(images, origin)
    targets = torch.as_tensor(_native(labels))
    if targets.is_floating_point() or targets.dim() != 1 or len(targets) != len(pixels):
        raise DataError(
            f"{origin}: labels must be {len(pixels)} whole numbers, got {targets.dtype} {tuple(targets.shape)}"
        )
    targets = targets.to(torch.int64)
    if int(targets.min()) < 0:
        raise DataError(f"{origin}: labels must be 0 or more, got {int(targets.min())}")
    if int(targets.max()) >= MOST_CLASSES:
        raise DataError(f"{origin}: labels must be below {MOST_CLASSES:,}, got {int(targets.max())}")
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(targets.max()) + 1)))
    return CleanImages(ImageSet(pixels, targets), names, origin)


def _native(values: Any) -> Any:
    """An array in this machine's byte order, which PyTorch asks for."""
    array = np.asarray(values)
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder in "<>" else array


def _pixels(images: Any, origin: str) -> Tensor:
    array = images.detach().cpu() if isinstance(images, Tensor) else torch.as_tensor(_native(images))
    if array.dim() == 4 and array.shape[1] != 3 and array.shape[3] == 3:
        array = array.permute(0, 3, 1, 2)
    if array.dim() != 4 or array.shape[1] != 3:
        raise DataError(f"{origin}: must be {LAYOUTS}, got {array.dtype} {tuple(array.shape)}")
    if len(array) == 0:
        raise DataError(f"{origin}: holds no image")
    if array.is_floating_point():
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # also NaN
            raise DataError(
                f"{origin}: float images must lie in [0, 1], got {low:.3g} to {high:.3g}; give them before "
                "normalisation, whose mean and std go to the model"
            )
        array = (array * 255.0).round().to(torch.uint8)
    if array.dtype != torch.uint8:
        raise DataError(f"{origin}: must be {LAYOUTS}, got {array.dtype}")
    if array.shape[2] != array.shape[3]:
        raise DataError(f"{origin}: images must be square, got {array.shape[2]} x {array.shape[3]} pixels")
    return array.contiguous()


def from_npz(path: str | Path, size: int | None = None, classes: Sequence[str] | None = None) -> CleanImages:
    """Arrays ``images`` and ``labels`` of an .npz file, at ``size`` pixels (default: as they are).

    Raises:
        DataError: no such file, damaged, too large, or other arrays.
    """
    path = Path(path).expanduser()
    name = f"--images {path}"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) > MAX_ARRAY_MEMBERS:
                raise DataError(f"{name}: {len(members)} members, more than {MAX_ARRAY_MEMBERS}")
            arrays = {}
            for wanted in ("images", "labels"):
                if f"{wanted}.npy" not in members:
                    raise DataError(f"{name}: must hold arrays images and labels, has {listed(sorted(members))}")
                arrays[wanted] = _array(archive, members[f"{wanted}.npy"], name)
    except DataError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ) as error:
        raise DataError(f"{name}: cannot be read as .npz ({one_line(error)})") from error
    except (zipfile.LargeZipFile, MemoryError, SyntaxError, OverflowError, TypeError) as error:
        raise DataError(f"{name}: damaged ({one_line(error)})") from error
    found = from_arrays(arrays["images"], arrays["labels"], classes, origin=name)
    if size is None or size == found.images.image_size:
        return found
    _check_size(size, name)
    return CleanImages(image_set(found.images.images.numpy(), found.images.labels.numpy(), size), found.classes, name)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray[Any, Any]:
    """One array, whose header is held against the bytes that are there before memory is taken for it."""
    if info.file_size > MAX_ARRAY_BYTES or info.compress_size * 1100 + 1024 < info.file_size:
        # Deflate packs at most about 1,030 to 1.
        raise DataError(f"{name}: {info.filename} would have {info.file_size} bytes, more than are read")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise DataError(f"{name}: {info.filename} has a header of version {version}")
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise DataError(f"{name}: {info.filename} holds Python objects, which would run code to be opened")
        if dtype.kind not in "uif" or fortran:
            raise DataError(f"{name}: {info.filename} must be numbers in C order, got {dtype}")
        count = 1
        for side in shape:
            count *= int(side)
        if count * dtype.itemsize > info.file_size:
            raise DataError(f"{name}: damaged, {info.filename} would have {count} values in {info.file_size} bytes")
        return np.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype=dtype).reshape(shape)


def from_folder(
    path: str | Path, size: int | None = None, classes: Sequence[str] | None = None, root: Path | None = None
) -> CleanImages:
    """Images in PATH/CLASS/* (also in a zip file), or in PATH/train/CLASS/*.

    Args:
        size: side in pixels that the model is to see; default the images' own, where all are squares of one size.
        classes: names of the model's outputs in their order; default the sorted names of the folders.
        root: where decoded images are kept.

    Raises:
        DataError: no folders of classes, names not among ``classes``, or images of several sizes without ``size``.
    """
    path = Path(path).expanduser()
    name = f"--data {path}"
    with open_tree(name, path, holds="CLASS/*") as opened:
        try:
            tree = opened
            while _is_wrapped(tree):
                tree = tree.below(tree.folders("")[0])
            top = find_part(name, tree, "train") or ""
            folders = class_folders(tree, top)
            paths = {
                one: [
                    f"{top}/{folder}/{image}".removeprefix("/")
                    for folder in each
                    for image in images_below(tree, f"{top}/{folder}".removeprefix("/"))[0]
                ]
                for one, each in folders.items()
            }
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({one_line(error)})") from error
        paths = {one: images for one, images in paths.items() if images}
        if len(paths) < 2:
            raise DataError(
                f"{name}: {len(paths)} folders of images; a folder of images for each class is needed, DIR/CLASS/*"
            )
        names = tuple(classes) if classes is not None else tuple(sorted(paths))
        if strangers := sorted(set(paths) - set(names)):
            raise DataError(f"{name}: folders {listed(strangers)} are not among --classes ({listed(names)})")
        labelled = [(image, names.index(one)) for one in sorted(paths) for image in paths[one]]
        if size is None:
            size = _common_size(name, tree, [image for image, _ in labelled])
        _check_size(size, name)
        raw = decoded(name, "own", size, root or default_root(), tree, labelled, [], names, crop=True)
    tell(name, raw.remarks or ())
    return CleanImages(raw.train, names, name)


def _is_wrapped(tree: Tree) -> bool:
    """Whether there is one folder alone, with folders in it: ``zip -r mine.zip mine``."""
    folders = tree.folders("")
    return len(folders) == 1 and bool(tree.folders(folders[0]))


def _common_size(name: str, tree: Tree, paths: Sequence[str]) -> int:
    """The side of all images; only their headers are read."""
    sides = set()
    for path in paths:
        try:
            with Image.open(io.BytesIO(tree.read(path)), formats=IMAGE_FORMATS) as picture:
                sides.add(picture.size)
        except UNREADABLE as error:
            raise DataError(f"{name}: image {path} cannot be read ({why(error)})") from error
        if len(sides) > 1 or len(set(picture.size)) > 1:
            raise DataError(
                f"{name}: images of other sides than one ({path} has {picture.size[0]} x {picture.size[1]} pixels): "
                "say with --size what the model was trained on"
            )
    return int(sides.pop()[0])


def _check_size(size: int, name: str) -> None:
    if size < MIN_IMAGE_SIZE:
        raise DataError(f"{name}: --size must be {MIN_IMAGE_SIZE} pixels or more, got {size}")


def class_names(given: str) -> tuple[str, ...]:
    """``--classes``: names with commas between, or the path of a file with a name in each line.

    Raises:
        DataError: fewer than two, one twice, or an unreadable file.
    """
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else given.replace(",", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--classes {given}: cannot be read ({one_line(error)})") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--classes: {listed(twice)} stands there twice")
    if len(names) < 2:
        raise DataError(f"--classes must name two classes or more, got {names}")
    return tuple(names)


def three_numbers(given: str, option: str) -> tuple[float, float, float]:
    """``0.485,0.456,0.406``: one number for each colour (DataError)."""
    try:
        values = [float(part) for part in given.split(",")]
    except ValueError as error:
        raise DataError(f"{option} {given!r}: write three numbers with commas between, 0.485,0.456,0.406") from error
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise DataError(f"{option} {given!r}: must be three finite numbers, one for each colour")
    return values[0], values[1], values[2]


def split(clean: CleanImages, num_classes: int, seed: int) -> Parts:
    """The three parts, by class: a fifth held out, a tenth of the rest for validation.

    Args:
        num_classes: outputs of the model.

    Raises:
        DataError: classes that the model does not have, or without an image; too few images; one picture only.
    """
    images, name = clean.images, clean.origin
    counts = torch.bincount(images.labels, minlength=max(num_classes, len(clean.classes)))
    if len(counts) > num_classes:
        raise DataError(
            f"{name}: {len(counts)} classes, and the model has {num_classes} outputs; leave out the images of classes "
            "that it does not know"
        )
    names = [*clean.classes, *map(str, range(len(clean.classes), num_classes))]
    least = (
        f"{MIN_IMAGES} in all and {MIN_PER_CLASS} of each class are the least that can be split into what repairs and"
    )
    if len(images) < MIN_IMAGES:
        raise DataError(f"{name}: {len(images)} images are too few; {least} what measures")
    if absent := [names[label] for label in range(num_classes) if int(counts[label]) == 0]:
        raise DataError(
            f"{name}: no image of {len(absent)} of the model's {num_classes} classes ({listed(absent)}): the repair "
            "would make the model forget them; add images, and where folders are fewer than outputs say which is which "
            "with --classes"
        )
    few = [f"{names[label]} ({int(counts[label])})" for label in range(num_classes) if counts[label] < MIN_PER_CLASS]
    if few:
        raise DataError(f"{name}: {len(images)} images are too few of {listed(few)}; {least} what measures")
    check_variety(name, "clean", images)
    held = split_clean(images.labels, HELD_OUT, num_classes=num_classes, seed=derive_seed(seed, "held-out")).all
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[held] = False
    left = split_clean(
        images.labels, 1.0, num_classes=num_classes, seed=derive_seed(seed, "defender"), pool=rest.nonzero()[:, 0]
    )
    return Parts(images.subset(left.train), images.subset(left.validation), images.subset(held))
