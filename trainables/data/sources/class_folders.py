"""Which folders hold the images of a class, in the training and in the test part."""

import unicodedata
from collections.abc import Sequence

from trainables.data.images import DataError
from trainables.data.sources.answers import table_of
from trainables.data.sources.parts import LAYOUT, find_part, found_in, is_tiny_imagenet, listed, without_classes
from trainables.data.sources.trees import Tree, images_below

Folders = dict[str, list[str]]  # class -> the names of its folders


def class_folders(tree: Tree, top: str) -> Folders:
    """Folders of every class. Names are equal when they look alike: composed or decomposed letters (macOS) are one."""
    found: Folders = {}
    for folder in tree.folders(top):
        found.setdefault(unicodedata.normalize("NFC", folder), []).append(folder)
    return found


def find_test_part(name: str, tree: Tree, train_top: str, classes: Sequence[str]) -> tuple[str, str | None]:
    """The folder of the test part, and the table of its classes where it has no class folders.

    ``test``, else ``val``; ``val`` too where the classes of ``test`` are not known, as in Tiny ImageNet.
    """
    found = [top for part in ("test", "val") if (top := find_part(name, tree, part))]
    if not found:
        raise DataError(
            f"{name}: no test/ in {tree.label}, and no val/ in its place; {LAYOUT} (found {found_in(tree)})"
        )
    known = {one.casefold() for one in classes}
    for top in found:
        if any(one.casefold() in known for one in class_folders(tree, top)):
            return top, None
        if table := table_of(tree, top):
            return top, table
    unsorted = [top for top in found if is_tiny_imagenet(tree, top)]
    for top in () if unsorted else found:
        if strangers := [one for one, folders in class_folders(tree, top).items() if _has_images(tree, top, folders)]:
            raise DataError(_unknown_class(name, tree, strangers[0], top, train_top, classes))
    raise DataError(without_classes(name, tree, (unsorted or found)[0]))


def matched_folders(name: str, tree: Tree, top: str, train_top: str, classes: Sequence[str]) -> Folders:
    """The test part's folders of every class; ``cat`` is ``Cat`` where the training part has only one of them."""
    found = class_folders(tree, top)
    free, known = [one for one in classes if one not in found], set(classes)
    matched = {one: folders for one, folders in found.items() if one in known}
    for folder in (one for one in found if one not in known):
        alike = [one for one in free if one.casefold() == folder.casefold()]
        if len(alike) == 1 and alike[0] not in matched:
            matched[alike[0]] = found[folder]
        elif _has_images(tree, top, found[folder]):
            raise DataError(_unknown_class(name, tree, folder, top, train_top, classes))
    return {one: matched.get(one, []) for one in classes}


def _has_images(tree: Tree, top: str, folders: Sequence[str]) -> bool:
    return any(images_below(tree, f"{top}/{folder}")[0] for folder in folders)


def _unknown_class(name: str, tree: Tree, found: str, top: str, train_top: str, classes: Sequence[str]) -> str:
    return f"{name}: {top} class {found!r} is not in {tree.label}/{train_top}, which has {listed(classes)}"
