"""``tiny_imagenet``: the 200-class set of Stanford's course CS231n."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from trainables.data.images import DataError
from trainables.data.sources.base import Raw, Source, register
from trainables.data.sources.decoding import decoded
from trainables.data.sources.parts import unwrapped
from trainables.data.sources.trees import Tree, images_below, open_tree

FILES = "tiny-imagenet-200"


def _read(size: int, root: Path, download: bool) -> Raw:
    """Tiny ImageNet (Stanford CS231n): 200 classes, 100,000 training images; the labelled val part is the test set.

    From the unpacked folder, or from the zip file as it was downloaded. ``download`` is refused with the address.
    """
    path = root / FILES
    if not path.is_dir() and path.with_suffix(".zip").is_file():
        path = path.with_suffix(".zip")
    if not path.exists():
        refusal = "; it is not fetched by --download" if download else ""
        raise DataError(
            f"tiny_imagenet: no {FILES}/ and no {FILES}.zip in {root}{refusal}: get "
            f"http://cs231n.stanford.edu/{FILES}.zip and put it there, as it is or unpacked"
        )
    with open_tree("tiny_imagenet", path) as opened:
        tree = unwrapped(opened)
        for needed in ("train", "val"):
            if not tree.has(needed):
                raise DataError(f"tiny_imagenet: {needed} is missing in {tree.label}; unpack {FILES}.zip again")
        classes = tuple(tree.folders("train"))
        train = _by_class(tree, "train", classes)
        sorted_by_class = set(classes) <= set(tree.folders("val"))
        # In the order of the table (val_0, val_1, ...) both, so that it is one data set, with one fingerprint.
        test = sorted(_by_class(tree, "val", classes), key=_number) if sorted_by_class else _val_by_table(tree, classes)
        return decoded("tiny_imagenet", "tiny_imagenet", size, root, tree, train, test, classes, crop=True)


def _val_by_table(tree: Tree, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of the val part as it is downloaded: all images together, and a table of their classes."""
    answers = "val/val_annotations.txt"
    for needed in ("val/images", answers):
        if not tree.has(needed):
            raise DataError(f"tiny_imagenet: {needed} is missing in {tree.label}; unpack {FILES}.zip again")
    label_of = {name: label for label, name in enumerate(classes)}
    test = []
    for number, line in enumerate(tree.read(answers).decode().splitlines(), start=1):
        fields = line.split("\t")  # file, class, and the box of the object
        if len(fields) < 2 or fields[1] not in label_of:
            raise DataError(f"tiny_imagenet: {tree.label}/{answers} line {number} names no known class: {line!r}")
        test.append((f"val/images/{fields[0]}", label_of[fields[1]]))
    return test


def _by_class(tree: Tree, part: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of a part in class folders: train, and a val part that somebody sorted for other loaders."""
    found = []
    for label, name in enumerate(classes):
        folder = f"{part}/{name}"
        images = images_below(tree, folder)[0]
        if not images:
            raise DataError(f"tiny_imagenet: no images in {tree.label}/{folder}; unpack {FILES}.zip again")
        found += [(f"{folder}/{image}", label) for image in images]
    return found


def _number(item: tuple[str, int]) -> tuple[int, str]:
    stem = PurePosixPath(item[0]).stem
    digits = stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else 0, stem


TINY_IMAGENET = register(
    "tiny_imagenet",
    Source(
        description="Tiny ImageNet: 100,000 + 10,000 photographs, 64 px, 200 classes; fetch the zip yourself",
        image_size=64,
        num_classes=200,
        flip=True,
        mean=None,
        std=None,
        read=_read,
        sizes=(100_000, 10_000),
        files=(f"{FILES}*",),  # the folder or the zip
    ),
)
