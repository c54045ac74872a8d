"""Which folders of a tree hold the training and the test part, under the names that people give them."""

from collections.abc import Sequence

from trainables.data.images import DataError
from trainables.data.sources.trees import Tree, images_below, is_image

# By part: names in small letters, without "-", "_" and a "set" at the end. The first is the name in our own layout.
PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}
LAYOUT = "images go into train/CLASS/ and test/CLASS/"


def part_of(folder: str) -> str | None:
    """The part that a folder holds by its name: ``train``, ``test`` or ``val``; None for any other name."""
    plain = folder.casefold().replace("-", "").replace("_", "").removesuffix("set")
    return next((part for part, names in PARTS.items() if plain in names), None)


def unwrapped(tree: Tree) -> Tree:
    """The tree without folders around everything (``zip -r x.zip x``), whatever files lie beside them."""
    inner = tree
    while not any(map(part_of, folders := inner.folders(""))):
        if len(folders) != 1:
            return tree  # nothing that we know is in there; messages tell of the top
        inner = inner.below(folders[0])
    return inner


def find_part(name: str, tree: Tree, part: str) -> str | None:
    """The folder of ``part``, None where there is none. ``train`` written so goes before ``Train`` and ``training``.

    Raises:
        DataError: two folders may be meant.
    """
    fitting = [folder for folder in tree.folders("") if part_of(folder) == part]
    if part in fitting:
        return _inner(tree, part)
    if len(fitting) > 1:
        raise DataError(
            f"{name}: {fitting[0]}/ and {fitting[1]}/ in {tree.label} may both be the {part} part; "
            f"rename the right one to {part}/"
        )
    return _inner(tree, fitting[0]) if fitting else None


def _inner(tree: Tree, top: str) -> str:
    """``training_set/training_set``: a part within a folder of the same name."""
    inside = tree.folders(top)
    return f"{top}/{inside[0]}" if len(inside) == 1 and part_of(inside[0]) == part_of(top) else top


def find_training_part(name: str, tree: Tree) -> str:
    """The folder of the training part.

    Raises:
        DataError: there is none; the line says what was found instead and what to do.
    """
    if top := find_part(name, tree, "train"):
        return top
    folders = tree.folders("")
    start = f"{name}: no train/ in {tree.label}"
    for folder in folders:
        if any(part_of(inner) == "train" for inner in tree.folders(folder)):
            raise DataError(f"{start}, but in its folder {folder}/; give that folder alone")
    with_images = [folder for folder in folders if any(map(is_image, tree.files(folder)))]
    if with_images and not any(part_of(folder) for folder in folders):
        raise DataError(
            f"{start}, but {_counted('folder', len(with_images))} of images ({listed(with_images)}): if these are the "
            "classes, move them into train/, and some images of every class into test/CLASS/"
        )
    raise DataError(f"{start}; {LAYOUT} (found {found_in(tree)})")


def without_classes(name: str, tree: Tree, top: str) -> str:
    """The message for a part in which no class folder is."""
    images = len(images_below(tree, top)[0])
    inside = f", and the classes of the {_counted('image', images)} in it are not known" if images else ""
    hint = ""
    if is_tiny_imagenet(tree, top):
        hint = "; this looks like Tiny ImageNet as it is downloaded, which `dataset: tiny_imagenet` reads"
    return f"{name}: no class folders in {tree.label}/{top}{inside}; {LAYOUT}{hint}"


def is_tiny_imagenet(tree: Tree, top: str) -> bool:
    """Whether ``top`` is the val part of Tiny ImageNet with its table of classes."""
    return tree.has(f"{top}/val_annotations.txt")


def found_in(tree: Tree) -> str:
    """What lies at the top of a tree, in a few words."""
    names = [f"{folder}/" for folder in tree.folders("")] + tree.files("")
    return listed(names) if names else "nothing"


def listed(names: Sequence[str]) -> str:
    """Up to ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _counted(what: str, count: int) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
