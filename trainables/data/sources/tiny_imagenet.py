"""``tiny_imagenet``: the 200-class set of Stanford's course CS231n."""

from pathlib import Path

from trainables.data.images import DataError
from trainables.data.sources.base import Raw, Source, register
from trainables.data.sources.decoding import decoded
from trainables.data.sources.trees import images_in, open_tree

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
    with open_tree("tiny_imagenet", path) as tree:
        answers = "val/val_annotations.txt"
        for needed in ("train", "val/images", answers):
            if not tree.has(needed):
                raise DataError(f"tiny_imagenet: {needed} is missing in {tree.label}; unpack {FILES}.zip again")
        classes = tuple(tree.folders("train"))
        train = []
        for label, name in enumerate(classes):
            folder = f"train/{name}/images"
            images = images_in(tree, folder)[0] if tree.has(folder) else []
            if not images:
                raise DataError(f"tiny_imagenet: no images in {tree.label}/{folder}; unpack {FILES}.zip again")
            train += [(f"{folder}/{image}", label) for image in images]
        label_of = {name: label for label, name in enumerate(classes)}
        test = []
        for number, line in enumerate(tree.read(answers).decode().splitlines(), start=1):
            fields = line.split("\t")  # file, class, and the box of the object
            if len(fields) < 2 or fields[1] not in label_of:
                raise DataError(f"tiny_imagenet: {tree.label}/{answers} line {number} names no known class: {line!r}")
            test.append((f"val/images/{fields[0]}", label_of[fields[1]]))
        return decoded("tiny_imagenet", "tiny_imagenet", size, root, tree, train, test, classes, crop=True)


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
    ),
)
