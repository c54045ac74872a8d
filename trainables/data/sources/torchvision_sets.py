"""``cifar10``, ``cifar100``, ``svhn`` and ``stl10``: read, and on request fetched, by torchvision."""

import http.client
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from trainables.data.archives import Archive
from trainables.data.images import DataError
from trainables.data.sources.base import Raw, Source, image_set, register
from trainables.data.sources.cache import Room, cached
from trainables.data.sources.trees import FolderTree
from trainables.storage.files import locked
from trainables.storage.messages import one_line

T = TypeVar("T")

STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def fetched(name: str, root: Path, download: bool, needs: str, make: Callable[[], T]) -> T:
    """``make()``, a torchvision data set, with its failures told in one line. ``needs`` says which files go where."""
    try:
        if not download:
            return make()
        with locked(root / f".{name}", required=False):  # two trials on one machine fetch it once
            return make()
    except RuntimeError as error:  # torchvision's only word for missing, incomplete and damaged files
        remedy = "the downloaded file is damaged: delete it and try again" if download else "add --download"
        raise DataError(f"{name}: no complete copy in {root}; {remedy}, or put {needs} there") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = one_line(getattr(error, "reason", error))
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
        train = fetched(name, root, download, needs, partial(kind, root, train=True, download=download))
        test = fetched(name, root, download, needs, partial(kind, root, train=False, download=download))
    return Raw(
        image_set(train.data.transpose(0, 3, 1, 2), train.targets, size),
        image_set(test.data.transpose(0, 3, 1, 2), test.targets, size),
        tuple(train.classes),
    )


def _read_svhn(size: int, root: Path, download: bool) -> Raw:
    """The cropped digits, parts train and test (not extra)."""
    from torchvision import datasets

    needs = "train_32x32.mat and test_32x32.mat"
    train, test = (
        fetched("svhn", root, download, needs, partial(datasets.SVHN, root, split=part, download=download))
        for part in ("train", "test")
    )
    classes = tuple(str(digit) for digit in range(10))
    return Raw(image_set(train.data, train.labels, size), image_set(test.data, test.labels, size), classes)


def _read_stl10(size: int, root: Path, download: bool) -> Raw:
    """The 5,000 + 8,000 labelled images, 96x96, shrunk. Cached: torchvision checks all 2.6 GB at every start."""
    from torchvision import datasets

    def part(split: str) -> Any:
        needs = "stl10_binary/ (from stl10_binary.tar.gz, with unlabeled_X.bin)"
        return fetched("stl10", root, download, needs, partial(datasets.STL10, root, split=split, download=download))

    def read(_: Room) -> Raw:
        train, test = part("train"), part("test")
        return Raw(image_set(train.data, train.labels, size), image_set(test.data, test.labels, size), STL10_CLASSES)

    tree = FolderTree(root)
    files = [f"stl10_binary/{split}_{kind}.bin" for split in ("train", "test") for kind in ("X", "y")]
    if not all(tree.has(file) for file in files):
        part("train")  # fetches all parts, or says what is missing
    return cached("stl10", size, root, tree.stamp(files), read)


def _archive(name: str) -> tuple[Archive, ...]:
    """Where torchvision fetches a set from that is one file, and the checksum that it knows."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    return (Archive(kind.url, kind.filename, kind.tgz_md5),)


def _archives_of_svhn() -> tuple[Archive, ...]:
    from torchvision import datasets

    return tuple(Archive(*datasets.SVHN.split_list[part]) for part in ("train", "test"))


# Constants of CIFAR: BackdoorBench's.
CIFAR10 = register(
    "cifar10",
    Source(
        description="CIFAR-10: 50,000 + 10,000 photographs, 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        read=partial(_read_cifar, "cifar10"),
        sizes=(50_000, 10_000),
        files=("cifar-10-batches-py/data_batch_5", "cifar-10-batches-py/test_batch"),
        archives=partial(_archive, "cifar10"),
    ),
)

CIFAR100 = register(
    "cifar100",
    Source(
        description="CIFAR-100: 50,000 + 10,000 photographs, 32 px, 100 classes",
        image_size=32,
        num_classes=100,
        flip=False,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        read=partial(_read_cifar, "cifar100"),
        sizes=(50_000, 10_000),
        files=("cifar-100-python/train", "cifar-100-python/test"),
        archives=partial(_archive, "cifar100"),
    ),
)

SVHN = register(
    "svhn",
    Source(
        description="SVHN: 73,257 + 26,032 cropped house numbers, 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=False,
        mean=None,
        std=None,
        read=_read_svhn,
        sizes=(73_257, 26_032),
        files=("train_32x32.mat", "test_32x32.mat"),
        archives=_archives_of_svhn,
    ),
)

STL10 = register(
    "stl10",
    Source(
        description="STL-10: 5,000 + 8,000 photographs, 96 px shrunk to 32 px, 10 classes",
        image_size=32,
        num_classes=10,
        flip=True,
        mean=None,
        std=None,
        read=_read_stl10,
        sizes=(5_000, 8_000),
        files=("stl10_binary/train_X.bin", "stl10_binary/test_X.bin", "stl10_binary/unlabeled_X.bin"),
        archives=partial(_archive, "stl10"),
    ),
)
