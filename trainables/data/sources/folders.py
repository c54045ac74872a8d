"""``folder:PATH``: images of the user's own, in class folders or a zip file of them."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainables.data.images import DataError
from trainables.data.sources.base import MIN_IMAGE_SIZE, Raw
from trainables.data.sources.decoding import IMAGE_FORMATS, UNREADABLE, decoded
from trainables.data.sources.trees import IMAGE_ENDINGS, Tree, images_in, open_tree
from trainables.storage.messages import one_line

logger = logging.getLogger(__name__)

FOLDER = "folder:"
MAX_FOLDER_SIZE = 64  # default side of folder images: larger pictures are shrunk to this


def read_folder(name: str, image_size: int | None, root: Path) -> Raw:
    """``folder:PATH``: PATH/train/CLASS/* and PATH/test/CLASS/*; labels are positions in the sorted class names."""
    where = name.removeprefix(FOLDER)
    if not where:
        raise DataError(f"dataset: {name!r} names no path; write {FOLDER}PATH with PATH/train/CLASS/* and test/CLASS/*")
    with open_tree(name, Path(where).expanduser()) as tree:
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
        return decoded(name, "folder", size, root, tree, train, test, classes, crop=True)


def _class_images(name: str, tree: Tree, top: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of every image below ``top``, sorted by class and file name."""
    found: list[tuple[str, int]] = []
    ignored: list[str] = []
    for label, folder in enumerate(f"{top}/{name_of_class}" for name_of_class in classes):
        images, others = images_in(tree, folder) if tree.has(folder) else ([], [])
        if not images:
            raise DataError(f"{name}: class folder {tree.label}/{folder} has no images ({', '.join(IMAGE_ENDINGS)})")
        found += [(f"{folder}/{image}", label) for image in images]
        ignored += [f"{folder}/{other}" for other in others]
    if ignored:
        logger.warning("%s: ignored %d files that are not JPEG, PNG or PPM, first %s", name, len(ignored), ignored[0])
    return found


def _default_size(name: str, tree: Tree, path: str) -> int:
    try:
        with Image.open(io.BytesIO(tree.read(path)), formats=IMAGE_FORMATS) as picture:
            return max(MIN_IMAGE_SIZE, min(MAX_FOLDER_SIZE, *picture.size))
    except UNREADABLE as error:
        raise DataError(f"{name}: image {tree.label}/{path} cannot be read ({one_line(error)})") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
