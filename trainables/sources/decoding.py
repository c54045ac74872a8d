"""Where data sets come from: names and ``folder:PATH`` in, uint8 images and labels out.

Nothing here fetches anything unless ``download`` is set. Sets that are slow to read are decoded once and kept as a
checked uint8 file; everything a user can get wrong ends in one line of ``DataError``.
"""

import csv
import difflib
import hashlib
import http.client
import io
import json
import logging
import os
import struct
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from trainables.data import DataError, Dataset, ImageSet, fingerprint_of

__all__ = ["SOURCES", "Source", "default_root", "load"]

logger = logging.getLogger(__name__)

Channels = tuple[float, float, float]
T = TypeVar("T")

MIN_IMAGE_SIZE = 8
FOLDER = "folder:"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm")
IMAGE_FORMATS = ("JPEG", "PNG", "PPM")
MAX_FOLDER_SIZE = 64  # default side of folder images: larger pictures are shrunk to this
CACHE_SCHEMA = "1"

# What PIL, zipfile and zlib raise on damaged files (PIL uses SyntaxError for broken PNG chunks).
_UNREADABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Raw:
    """Decoded images of a source; ``fingerprint`` is set when reading had to compute it anyway."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    fingerprint: str | None = None


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
    """

    description: str
    image_size: int
    num_classes: int
    flip: bool
    mean: Channels | None
    std: Channels | None
    read: Callable[[int, Path, bool], Raw]


def default_root() -> Path:
    """Folder of data files: SUPERFT_DATA, else ``~/.cache/superft/data``."""
    return Path(os.environ.get("SUPERFT_DATA") or "~/.cache/superft/data").expanduser()


def load(name: str, *, image_size: int | None = None, root: Path | None = None, download: bool = False) -> Dataset:
    """Data set ``name`` on the CPU.

    Args:
        name: a key of ``SOURCES``, or ``folder:PATH`` with PATH/train/CLASS/* and PATH/test/CLASS/* (JPEG, PNG, PPM),
            where PATH may be a zip file with the same layout. A folder is never mirrored in training: its labels may
            depend on left and right.
        image_size: side in pixels, 8 or more. Default: the source's own; for a folder the shorter side of the first
            training image, at least 8 and at most 64.
        root: where files lie and decoded copies are kept; default ``default_root()``. It may be a folder that
            torchvision has filled.
        download: fetch what is missing, for the sets that torchvision can fetch.

    Raises:
        DataError: unknown name, bad size, missing or damaged files, or a folder that is no classification task.
    """
    if image_size is not None and (isinstance(image_size, bool) or image_size < MIN_IMAGE_SIZE):
        raise DataError(f"image_size: must be {MIN_IMAGE_SIZE} pixels or more, got {image_size}")
    root = default_root() if root is None else Path(root).expanduser()
    mean: Channels | None = None
    std: Channels | None = None
    flip = False
    if name.startswith(FOLDER):
        raw = _read_folder(name, image_size, root)
    elif name in SOURCES:
        source = SOURCES[name]
        raw = source.read(image_size or source.image_size, root, download)
        if len(raw.classes) != source.num_classes:
            raise DataError(
                f"{name}: found {len(raw.classes)} classes in {root}, expected {source.num_classes}; "
                "the copy is incomplete, unpack it again"
            )
        mean, std, flip = source.mean, source.std, source.flip
    else:
        raise DataError(_unknown(name))
    if mean is None or std is None:
        mean, std = channel_statistics(raw.train.images)
    return Dataset(
        name=name,
        train=raw.train,
        test=raw.test,
        classes=raw.classes,
        mean=mean,
        std=std,
        flip=flip,
        fingerprint=raw.fingerprint or fingerprint_of(raw.train, raw.test),
    )


def _unknown(name: str) -> str:
    hint = ""
    if name and Path(name).expanduser().exists():
        hint = f"did you mean '{FOLDER}{name}'? "
    elif near := difflib.get_close_matches(name.lower(), SOURCES, n=1, cutoff=0.4):
        hint = f"did you mean {near[0]!r}? "
    return f"dataset: unknown name {name!r}; {hint}known: {', '.join(SOURCES)}, {FOLDER}PATH"


def channel_statistics(images: Tensor) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel, in units of [0, 1], of uint8 images (N, 3, H, W).

    In parts, because a float copy of a large set would not fit, and from exact sums: the squares of uint8 values are
    whole numbers in float32, and their total in float64. A channel without any variation gets std 1.
    """
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].float()
        total += part.sum((0, 2, 3), dtype=torch.float64)
        squares += part.square().sum((0, 2, 3), dtype=torch.float64)
    count = images.numel() / 3
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std[std < 1e-6] = 255.0
    m, s = (mean / 255).tolist(), (std / 255).tolist()
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])


# --- images of one size, already decoded ---------------------------------------------------------------------------


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, 3, H, H) at ``size`` pixels: bilinear, antialiased when shrinking, rounded. No copy at equal size."""
    if images.shape[-1] == size:
        return images.contiguous()
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].float()
        part = functional.interpolate(part, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + 1024] = part.round().clamp(0, 255).byte()
    return out


def _image_set(images: np.ndarray[Any, Any], labels: Sequence[int] | np.ndarray[Any, Any], size: int) -> ImageSet:
    """From uint8 (N, 3, H, H) and any integer labels."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return ImageSet(_resized(tensor, size), torch.tensor(np.asarray(labels), dtype=torch.int64))


DIGITS_TEST = 500


def _read_digits(size: int, _root: Path, _download: bool) -> Raw:
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
    test[_stratified(labels.tolist(), DIGITS_TEST)] = True
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


# --- sets that torchvision knows -----------------------------------------------------------------------------------


def _fetched(name: str, root: Path, download: bool, needs: str, make: Callable[[], T]) -> T:
    """``make()``, a torchvision data set, with its failures told in one line. ``needs`` says which files go where."""
    try:
        if not download:
            return make()
        with _exclusive(root / f".{name}"):  # two trials on one machine fetch it once
            return make()
    except RuntimeError as error:  # torchvision's only word for missing, incomplete and damaged files
        remedy = "the downloaded file is damaged: delete it and try again" if download else "add --download"
        raise DataError(f"{name}: no complete copy in {root}; {remedy}, or put {needs} there") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = _one_line(getattr(error, "reason", error))
        doing = "download to" if download else "reading"
        remedy = "check the network" if download else "add --download"
        raise DataError(f"{name}: {doing} {root} failed ({reason}); {remedy}, or put {needs} there") from error


def _read_cifar(name: str, size: int, root: Path, download: bool) -> Raw:
    from torchvision import datasets  # here: torchvision takes a second to import

    # Its pickles are only opened after their checksums matched the published ones.
    kind, needs = {
        "cifar10": (datasets.CIFAR10, "cifar-10-batches-py/ (from cifar-10-python.tar.gz)"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python/ (from cifar-100-python.tar.gz)"),
    }[name]
    with warnings.catch_warnings():  # numpy >= 2.4 on pickles written by Python 2: nothing a user can do about it
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train = _fetched(name, root, download, needs, partial(kind, root, train=True, download=download))
        test = _fetched(name, root, download, needs, partial(kind, root, train=False, download=download))
    return Raw(
        _image_set(train.data.transpose(0, 3, 1, 2), train.targets, size),
        _image_set(test.data.transpose(0, 3, 1, 2), test.targets, size),
        tuple(train.classes),
    )


def _read_svhn(size: int, root: Path, download: bool) -> Raw:
    """The cropped digits, parts train and test (not extra)."""
    from torchvision import datasets

    needs = "train_32x32.mat and test_32x32.mat"
    train, test = (
        _fetched("svhn", root, download, needs, partial(datasets.SVHN, root, split=part, download=download))
        for part in ("train", "test")
    )
    classes = tuple(str(digit) for digit in range(10))
    return Raw(_image_set(train.data, train.labels, size), _image_set(test.data, test.labels, size), classes)


STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _read_stl10(size: int, root: Path, download: bool) -> Raw:
    """The 5,000 + 8,000 labelled images, 96x96, shrunk. Cached: torchvision checks all 2.6 GB at every start."""
    from torchvision import datasets

    def part(split: str) -> Any:
        needs = "stl10_binary/ (from stl10_binary.tar.gz, with unlabeled_X.bin)"
        return _fetched("stl10", root, download, needs, partial(datasets.STL10, root, split=split, download=download))

    def read() -> Raw:
        train, test = part("train"), part("test")
        return Raw(_image_set(train.data, train.labels, size), _image_set(test.data, test.labels, size), STL10_CLASSES)

    tree = _FolderTree(root)
    files = [f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in ("X", "y")]
    if not all(tree.has(file) for file in files):
        part("train")  # fetches all parts, or says what is missing
    return _cached("stl10", size, root, tree.stamp(files), read)


GTSRB_CLASSES = tuple(f"{number:05d}" for number in range(43))  # as the folders are named
GTSRB_SERVER = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
GTSRB_TRAINING = ("GTSRB_Final_Training_Images.zip", "f33fd80ac59bff73c82d25ab499e03a3")


def _read_gtsrb(size: int, root: Path, download: bool) -> Raw:
    """The 39,209 + 12,630 images of the final benchmark, 15-250 pixels, stretched to squares (not cropped).

    torchvision's own training part is the smaller set of the online competition (GTSRB-Training_fixed, 26,640 images).
    The papers use the final one, so this fetches that; a folder filled by torchvision is read, with a warning.
    """
    base = root / "gtsrb"
    if download:
        _fetched("gtsrb", root, True, "the archives of the final benchmark", partial(_download_gtsrb, root))
    tree = _FolderTree(base)
    train_top, test_top, answers = "GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images", "GT-final_test.csv"
    if not tree.has(train_top) and tree.has("GTSRB/Training"):
        train_top = "GTSRB/Training"
        logger.warning(
            "gtsrb: %s holds the competition's training part (26,640 images), not the final one (39,209) that papers "
            "use; add --download to fetch it",
            base / train_top,
        )
    missing = [item for item in (train_top, test_top, answers) if not tree.has(item)]
    if missing:
        raise DataError(f"gtsrb: {missing[0]} is missing in {base}; add --download, or put the unpacked archives there")

    train = [
        (f"{train_top}/{name}/{file}", label)
        for label, name in enumerate(GTSRB_CLASSES)
        if tree.has(f"{train_top}/{name}")
        for file in _images_in(tree, f"{train_top}/{name}")[0]
    ]
    rows = csv.DictReader(io.StringIO(tree.read(answers).decode("utf-8-sig")), delimiter=";", skipinitialspace=True)
    try:
        test = [(f"{test_top}/{row['Filename']}", int(row["ClassId"])) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"gtsrb: {base / answers} needs the columns Filename and ClassId ({error!r})") from error
    if absent := sorted(set(range(len(GTSRB_CLASSES))) - {label for _, label in train}):
        raise DataError(f"gtsrb: class folder {GTSRB_CLASSES[absent[0]]} in {base / train_top} is missing or empty")
    return _decoded("gtsrb", "gtsrb", size, root, tree, train, test, GTSRB_CLASSES, crop=False)


def _download_gtsrb(root: Path) -> None:
    from torchvision import datasets

    datasets.GTSRB(root, split="test", download=True)
    base = root / "gtsrb"
    if not (base / "GTSRB/Final_Training/Images").is_dir():
        archive, checksum = GTSRB_TRAINING
        datasets.utils.download_and_extract_archive(GTSRB_SERVER + archive, download_root=str(base), md5=checksum)


# --- folders and zip files of images -------------------------------------------------------------------------------


class _Tree(Protocol):
    """Files by relative path with forward slashes, from a folder or a zip file."""

    label: str

    def has(self, path: str) -> bool: ...

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly in ``path``, sorted, without hidden ones."""
        ...

    def files(self, path: str) -> list[str]:
        """Names of the files directly in ``path``, sorted, without hidden ones."""
        ...

    def read(self, path: str) -> bytes: ...

    def stamp(self, paths: Iterable[str]) -> str:
        """Digest that changes when one of the files is replaced, without reading them."""
        ...


class _FolderTree:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.label = str(base)

    def has(self, path: str) -> bool:
        return (self.base / path).exists()

    def folders(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def files(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()

    def stamp(self, paths: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            try:
                status = os.stat(self.base / path)
            except OSError:  # a dangling link: named later, when it cannot be read
                digest.update(f"{path}\0missing\n".encode())
                continue
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class _ZipTree:
    """Reads in place, nothing is unpacked. One folder around everything (``zip -r x.zip x``) is looked through."""

    def __init__(self, archive: zipfile.ZipFile, label: str) -> None:
        self.label = label
        self._archive = archive
        infos = {info.filename.rstrip("/"): info for info in archive.infolist() if not info.filename.startswith("/")}
        tops = {name.split("/")[0] for name in infos} - {"__MACOSX"}
        only = next(iter(tops)) + "/" if len(tops) == 1 else ""
        if only and only not in ("train/", "test/", "val/"):
            infos = {name[len(only) :]: info for name, info in infos.items() if name.startswith(only)}
        self._files = {name: info for name, info in infos.items() if not info.is_dir()}
        self._children: dict[str, tuple[set[str], set[str]]] = {}  # folder -> (names of folders, names of files)
        for name, info in infos.items():
            path = PurePosixPath(name)
            self._within(str(path.parent))[0 if info.is_dir() else 1].add(path.name)
            for parent in path.parents[:-1]:
                self._within(str(parent.parent))[0].add(parent.name)

    def _within(self, folder: str) -> tuple[set[str], set[str]]:
        return self._children.setdefault("" if folder == "." else folder, (set(), set()))

    def has(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        folders, files = self._children.get(parent, (set(), set()))
        return name in folders or name in files

    def folders(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[0] if not name.startswith("."))

    def files(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[1] if not name.startswith("."))

    def read(self, path: str) -> bytes:
        if path not in self._files:
            raise FileNotFoundError(f"{path} is not in {self.label}")
        try:
            return self._archive.read(self._files[path])
        except RuntimeError as error:  # encrypted, or packed by a method that zipfile does not know
            raise OSError(_one_line(error)) from error

    def stamp(self, paths: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            info = self._files.get(path)
            digest.update(f"{path}\0{info.CRC}\0{info.file_size}\n".encode() if info else f"{path}\0missing\n".encode())
        return digest.hexdigest()


@contextmanager
def _open_tree(name: str, path: Path) -> Iterator[_Tree]:
    if path.is_dir():
        yield _FolderTree(path)
        return
    if not path.exists():
        raise DataError(f"{name}: {path} does not exist; give a folder or zip file with train/CLASS/* and test/CLASS/*")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{name}: {path} is neither a folder nor a readable zip file ({_one_line(error)})") from error
    with archive:
        yield _ZipTree(archive, str(path))


def _read_folder(name: str, image_size: int | None, root: Path) -> Raw:
    """``folder:PATH``: PATH/train/CLASS/* and PATH/test/CLASS/*; labels are positions in the sorted class names."""
    where = name.removeprefix(FOLDER)
    if not where:
        raise DataError(f"dataset: {name!r} names no path; write {FOLDER}PATH with PATH/train/CLASS/* and test/CLASS/*")
    with _open_tree(name, Path(where).expanduser()) as tree:
        for top in ("train", "test"):
            if not tree.has(top):
                raise DataError(f"{name}: no {top}/ in {tree.label}; images go into train/CLASS/ and test/CLASS/")
        classes = tuple(tree.folders("train"))
        if not classes:
            raise DataError(f"{name}: no class folders in {tree.label}/train; images go into train/CLASS/")
        if len(classes) == 1:
            raise DataError(f"{name}: only one class, {classes[0]!r}, in {tree.label}/train; two or more are needed")
        if unknown := [label for label in tree.folders("test") if label not in classes]:
            raise DataError(
                f"{name}: test class {unknown[0]!r} is not in {tree.label}/train, which has {_listed(classes)}"
            )
        train, test = (_class_images(name, tree, top, classes) for top in ("train", "test"))
        size = image_size or _default_size(name, tree, train[0][0])
        return _decoded(name, "folder", size, root, tree, train, test, classes, crop=True)


def _class_images(name: str, tree: _Tree, top: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of every image below ``top``, sorted by class and file name."""
    found: list[tuple[str, int]] = []
    ignored: list[str] = []
    for label, folder in enumerate(f"{top}/{name_of_class}" for name_of_class in classes):
        images, others = _images_in(tree, folder) if tree.has(folder) else ([], [])
        if not images:
            raise DataError(f"{name}: class folder {tree.label}/{folder} has no images ({', '.join(IMAGE_ENDINGS)})")
        found += [(f"{folder}/{image}", label) for image in images]
        ignored += [f"{folder}/{other}" for other in others]
    if ignored:
        logger.warning("%s: ignored %d files that are not JPEG, PNG or PPM, first %s", name, len(ignored), ignored[0])
    return found


def _images_in(tree: _Tree, folder: str) -> tuple[list[str], list[str]]:
    """Names of image files, by their ending in any case, and of the other files."""
    images: list[str] = []
    others: list[str] = []
    for file in tree.files(folder):
        (images if PurePosixPath(file).suffix.lower() in IMAGE_ENDINGS else others).append(file)
    return images, others


def _default_size(name: str, tree: _Tree, path: str) -> int:
    try:
        with Image.open(io.BytesIO(tree.read(path)), formats=IMAGE_FORMATS) as picture:
            return max(MIN_IMAGE_SIZE, min(MAX_FOLDER_SIZE, *picture.size))
    except _UNREADABLE as error:
        raise DataError(f"{name}: image {tree.label}/{path} cannot be read ({_one_line(error)})") from error


TINY_IMAGENET = "tiny-imagenet-200"


def _read_tiny_imagenet(size: int, root: Path, download: bool) -> Raw:
    """Tiny ImageNet (Stanford CS231n): 200 classes, 100,000 training images; the labelled val part is the test set.

    From the unpacked folder, or from the zip file as it was downloaded. ``download`` is refused with the address.
    """
    path = root / TINY_IMAGENET
    if not path.is_dir() and path.with_suffix(".zip").is_file():
        path = path.with_suffix(".zip")
    if not path.exists():
        refusal = "; it is not fetched by --download" if download else ""
        raise DataError(
            f"tiny_imagenet: no {TINY_IMAGENET}/ and no {TINY_IMAGENET}.zip in {root}{refusal}: get "
            f"http://cs231n.stanford.edu/{TINY_IMAGENET}.zip and put it there, as it is or unpacked"
        )
    with _open_tree("tiny_imagenet", path) as tree:
        answers = "val/val_annotations.txt"
        for needed in ("train", "val/images", answers):
            if not tree.has(needed):
                raise DataError(f"tiny_imagenet: {needed} is missing in {tree.label}; unpack {TINY_IMAGENET}.zip again")
        classes = tuple(tree.folders("train"))
        train = []
        for label, name in enumerate(classes):
            folder = f"train/{name}/images"
            images = _images_in(tree, folder)[0] if tree.has(folder) else []
            if not images:
                raise DataError(f"tiny_imagenet: no images in {tree.label}/{folder}; unpack {TINY_IMAGENET}.zip again")
            train += [(f"{folder}/{image}", label) for image in images]
        label_of = {name: label for label, name in enumerate(classes)}
        test = []
        for number, line in enumerate(tree.read(answers).decode().splitlines(), start=1):
            fields = line.split("\t")  # file, class, and the box of the object
            if len(fields) < 2 or fields[1] not in label_of:
                raise DataError(f"tiny_imagenet: {tree.label}/{answers} line {number} names no known class: {line!r}")
            test.append((f"val/images/{fields[0]}", label_of[fields[1]]))
        return _decoded("tiny_imagenet", "tiny_imagenet", size, root, tree, train, test, classes, crop=True)


# --- decoding, once ------------------------------------------------------------------------------------------------


def _decoded(
    name: str,
    label: str,
    size: int,
    root: Path,
    tree: _Tree,
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
    return _cached(label, size, root, tree.stamp(paths) + layout, read)


def _decode(name: str, tree: _Tree, paths: Sequence[str], size: int, crop: bool) -> Tensor:
    """uint8 (N, 3, size, size). PIL decodes outside Python's lock, so a few threads use all cores."""
    logger.info("%s: decoding %d images from %s", name, len(paths), tree.label)
    out = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    pixels = out.numpy()

    def work(start: int) -> list[tuple[int, str]]:
        bad = []
        for index in range(start, min(start + 64, len(paths))):
            try:
                pixels[index] = _pixels(tree.read(paths[index]), size, crop)
            except _UNREADABLE as error:
                bad.append((index, _one_line(error)))
        return bad

    with ThreadPoolExecutor(min(16, _cores())) as pool:
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cached(label: str, size: int, root: Path, stamp: str, read: Callable[[], Raw]) -> Raw:
    """``read()``, or what it returned before for the same stamp and size.

    The file holds uint8 pixels and labels (safetensors), is written aside and renamed, and is checked whole when it is
    loaded: a damaged one is named and made again. A folder that cannot be written costs the decoding at each start.
    """
    key = hashlib.sha256(f"{CACHE_SCHEMA}\0{label}\0{size}\0{stamp}".encode()).hexdigest()[:20]
    path = root / "decoded" / f"{label}-{size}-{key}.safetensors"
    if raw := _load_decoded(path):
        return raw
    with _exclusive(path):
        raw = _load_decoded(path) if path.exists() else None  # another process may have made it meanwhile
        return raw or _store_decoded(path, read())


def _checksum(fingerprint: str, classes: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([fingerprint, *classes]).encode()).hexdigest()


def _load_decoded(path: Path) -> Raw | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            train, test = (
                ImageSet(file.get_tensor(f"{part}_images"), file.get_tensor(f"{part}_labels"))
                for part in ("train", "test")
            )
        classes = tuple(json.loads(meta["classes"]))
        fingerprint = fingerprint_of(train, test)
        if meta["checksum"] != _checksum(fingerprint, classes):
            raise DataError("checksum differs")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("decoded images %s are damaged or unreadable (%s): decoding again", path, _one_line(error))
        with suppress(OSError):  # a folder that cannot be written; then it is only read again and again
            path.unlink()
        return None
    return Raw(train, test, classes, fingerprint)


def _store_decoded(path: Path, raw: Raw) -> Raw:
    raw = Raw(raw.train, raw.test, raw.classes, fingerprint_of(raw.train, raw.test))
    assert raw.fingerprint is not None
    tensors = {
        "train_images": raw.train.images.contiguous(),
        "train_labels": raw.train.labels.contiguous(),
        "test_images": raw.test.images.contiguous(),
        "test_labels": raw.test.labels.contiguous(),
    }
    metadata = {"classes": json.dumps(raw.classes), "checksum": _checksum(raw.fingerprint, raw.classes)}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()
        mode = aside.stat().st_mode
        save_file(tensors, aside, metadata)
        aside.chmod(mode)  # safetensors writes 0600, which would hide the file from others who share the folder
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:  # SafetensorError: how save_file reports a full disk
        logger.warning("decoded images were not kept in %s (%s)", path.parent, _one_line(error))
        if aside.exists():
            aside.unlink()
    return raw


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One process at a time; where no lock can be had (read-only folder, no flock) the work is done without."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.debug("no lock on %s (%s)", path, error)
    try:
        yield
    finally:
        lock.release()  # does nothing when it was never acquired


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# Constants of CIFAR-10, CIFAR-100 and GTSRB (identity): BackdoorBench's. None: measured on the training pixels.
SOURCES: dict[str, Source] = {
    "digits": Source(
        description="1,797 real handwritten digits that ship with scikit-learn, 16 px; nothing to download",
        image_size=16,
        num_classes=10,
        flip=False,
        mean=None,
        std=None,
        read=_read_digits,
    ),
    "cifar10": Source(
        description="CIFAR-10: 50,000 + 10,000 photographs, 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        read=partial(_read_cifar, "cifar10"),
    ),
    "cifar100": Source(
        description="CIFAR-100: 50,000 + 10,000 photographs, 32 px, 100 classes",
        image_size=32,
        num_classes=100,
        flip=False,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        read=partial(_read_cifar, "cifar100"),
    ),
    "gtsrb": Source(
        description="GTSRB: 39,209 + 12,630 German traffic signs, resized to 32 px, 43 classes",
        image_size=32,
        num_classes=43,
        flip=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        read=_read_gtsrb,
    ),
    "stl10": Source(
        description="STL-10: 5,000 + 8,000 photographs, 96 px shrunk to 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=True,
        mean=None,
        std=None,
        read=_read_stl10,
    ),
    "svhn": Source(
        description="SVHN: 73,257 + 26,032 cropped house numbers, 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=False,
        mean=None,
        std=None,
        read=_read_svhn,
    ),
    "tiny_imagenet": Source(
        description="Tiny ImageNet: 100,000 + 10,000 photographs, 64 px, 200 classes; fetch the zip yourself",
        image_size=64,
        num_classes=200,
        flip=True,
        mean=None,
        std=None,
        read=_read_tiny_imagenet,
    ),
}
