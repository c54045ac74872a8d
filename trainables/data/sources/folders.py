"""``folder:PATH``: images of the user's own, in class folders or a zip file of them."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainables.data.images import DataError
from trainables.data.sources.answers import labelled
from trainables.data.sources.base import MIN_IMAGE_SIZE, Raw
from trainables.data.sources.class_folders import Folders, class_folders, find_test_part, matched_folders
from trainables.data.sources.decoding import IMAGE_FORMATS, UNREADABLE, decoded, why
from trainables.data.sources.parts import find_training_part, listed, unwrapped, without_classes
from trainables.data.sources.trees import IMAGE_ENDINGS, Tree, images_below, is_image, open_tree
from trainables.storage.messages import one_line

logger = logging.getLogger(__name__)

FOLDER = "folder:"
ENDINGS = ", ".join(IMAGE_ENDINGS)
MAX_FOLDER_SIZE = 64  # default side of folder images: larger pictures are shrunk to this

Labelled = list[tuple[str, int]]  # (path, label)


def read_folder(name: str, image_size: int | None, root: Path) -> Raw:
    """``folder:PATH``: PATH/train/CLASS/* and PATH/test/CLASS/*; labels are positions in the sorted class names.

    Read as torchvision's ImageFolder reads each part: the same endings, sub-folders of class folders included. Beyond
    it, photographs are turned upright and transparent pixels are shown on white. Also read: parts called ``Train``,
    ``training``, ``val`` and the like, one folder around everything, and a test part with a table of its classes (see
    `answers`). What is left out is told.

    Raises:
        DataError: a folder that is no classification task, or whose layout could mean two things.
    """
    where = name.removeprefix(FOLDER)
    if not where:
        raise DataError(f"dataset: {name!r} names no path; write {FOLDER}PATH with PATH/train/CLASS/* and test/CLASS/*")
    with open_tree(name, Path(where).expanduser()) as opened:
        try:
            tree = unwrapped(opened)
            train, test, classes = _listing(name, tree)
        except OSError as error:  # a folder that may not be opened
            raise DataError(f"{name}: {error.filename or where} cannot be read ({one_line(error)})") from error
        size = image_size or _default_size(name, tree, train[0][0])
        return decoded(name, "folder", size, root, tree, train, test, classes, crop=True)


def _listing(name: str, tree: Tree) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Training images, test images and classes."""
    train_top = find_training_part(name, tree)
    folders = class_folders(tree, train_top)
    classes = tuple(folders)
    if not classes:
        raise DataError(without_classes(name, tree, train_top))
    if len(classes) == 1:
        inside = tree.folders(f"{train_top}/{folders[classes[0]][0]}")
        hint = f" (if {listed(inside)} in it are the classes, move them up)" if len(inside) > 1 else ""
        raise DataError(
            f"{name}: only one class, {classes[0]!r}, in {tree.label}/{train_top}; two or more are needed{hint}"
        )
    left_out: list[str] = []
    train = _images(name, tree, train_top, folders, left_out)
    test_top, table = find_test_part(name, tree, train_top, classes)
    if table:
        test = labelled(name, tree, table, test_top, classes)
        listed_there = {path for path, _ in test}
        left_out += [path for path in _loose_images(tree, test_top) if path not in listed_there]
    else:
        test = _images(name, tree, test_top, matched_folders(name, tree, test_top, train_top, classes), left_out)
    _tell_left_out(name, tree, (train_top, test_top), left_out)
    return train, test, classes


def _images(name: str, tree: Tree, top: str, folders: Folders, left_out: list[str]) -> Labelled:
    """(path, label) of every image of the class folders below ``top``, sorted; other files are put to ``left_out``."""
    found: Labelled = []
    for label, (one, raw) in enumerate(folders.items()):
        before = len(found)
        for folder in (f"{top}/{each}" for each in raw):
            images, others = images_below(tree, folder)
            found += [(f"{folder}/{image}", label) for image in images]
            left_out += [f"{folder}/{other}" for other in others]
        if len(found) == before:
            raise DataError(f"{name}: class folder {tree.label}/{top}/{(raw or [one])[0]} has no images ({ENDINGS})")
    left_out += _loose_images(tree, top)
    return found


def _loose_images(tree: Tree, top: str) -> list[str]:
    """Images that lie in the folder of a part itself, in no class."""
    return [f"{top}/{file}" for file in tree.files(top) if is_image(file)]


def _tell_left_out(name: str, tree: Tree, parts: tuple[str, str], files: Sequence[str]) -> None:
    """Warn of folders beside the two parts, and of ``files`` within them, that are not read: a line each."""
    tops = [part.split("/")[0] for part in parts]
    if beside := [f"{folder}/" for folder in tree.folders("") if folder not in tops]:
        logger.warning("%s: %s/ and %s/ are read; left out: %s", name, *parts, listed(beside))
    if files:
        count = "1 file that is" if len(files) == 1 else f"{len(files)} files that are"
        logger.warning("%s: left out %s no image (%s) in a class, first %s", name, count, ENDINGS, files[0])


def _default_size(name: str, tree: Tree, path: str) -> int:
    try:
        with Image.open(io.BytesIO(tree.read(path)), formats=IMAGE_FORMATS) as picture:
            return max(MIN_IMAGE_SIZE, min(MAX_FOLDER_SIZE, *picture.size))
    except UNREADABLE as error:
        raise DataError(f"{name}: image {tree.label}/{path} cannot be read ({why(error)})") from error
