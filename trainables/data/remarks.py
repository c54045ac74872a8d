"""What is told of a data set that can be used, but not without a thought: images that occur twice."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence

from trainables.data.images import DataError, ImageSet

logger = logging.getLogger(__name__)

_told: set[str] = set()


def tell(name: str, remarks: Sequence[str]) -> None:
    """Warn of every remark, one line each, once per process and data set."""
    for line in (f"{name}: {remark}" for remark in remarks):
        if line not in _told:
            _told.add(line)
            logger.warning(line)


def repeated(train: ImageSet, test: ImageSet, classes: Sequence[str], name_of: Callable[[int], str]) -> tuple[str, ...]:
    """Remarks on test images that are also training images, and on images that have two labels; pixels are compared.

    Args:
        train, test: as they are used, so that images that differ only at a larger size count as equal.
        classes: names of the classes.
        name_of: what an image is called, by its position in both sets together, training images first.
    """
    first: dict[bytes, int] = {}
    labels = [*train.labels.tolist(), *test.labels.tolist()]
    leaked: list[tuple[int, int]] = []  # (test image, equal training image)
    ambiguous: dict[bytes, tuple[int, int]] = {}  # two images of one look and two labels
    for index, digest in enumerate((*_digests(train), *_digests(test))):
        earlier = first.setdefault(digest, index)
        if index >= len(train) > earlier:
            leaked.append((index, earlier))
        if labels[earlier] != labels[index]:
            ambiguous.setdefault(digest, (earlier, index))
    remarks = []
    if leaked:
        one, other = leaked[0]
        remarks.append(
            f"{len(leaked)} of {len(test)} test images {_are(len(leaked))} also in the training set, with the same "
            f"pixels, first {name_of(one)} = {name_of(other)}; on them a model is asked what it has seen"
        )
    if ambiguous:
        one, other = next(iter(ambiguous.values()))
        remarks.append(
            f"{len(ambiguous)} {'picture has' if len(ambiguous) == 1 else 'pictures have'} two labels, first "
            f"{name_of(one)} ({classes[labels[one]]}) = {name_of(other)} ({classes[labels[other]]})"
        )
    return tuple(remarks)


def check_variety(name: str, part: str, images: ImageSet) -> None:
    """Refuse a set in which all images are one picture: nothing can be learned from it, or measured on it (DataError).

    A single image is left alone. Comparing ends at the first image that differs.
    """
    first = images.images[:1]
    if len(images) > 1 and all(bool((first == images.images[i]).all()) for i in range(1, len(images))):
        raise DataError(f"{name}: all {len(images)} {part} images are the same picture; nothing can be told apart")


def _digests(images: ImageSet) -> list[bytes]:
    rows = images.images.contiguous().cpu().flatten(1).numpy()
    return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
