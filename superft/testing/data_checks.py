"""What every data set must hold, whatever is on its images: the promises of `Dataset`.

Every check is a plain function of a `Subject` and fails by ``AssertionError``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from superft.testing.refusals import refusal
from trainables.data.images import DataError, Dataset, fingerprint_of
from trainables.data.load import load_dataset
from trainables.data.sources.base import SOURCES

SIZES = (8, 24)


def names() -> list[str]:
    """All data sets that can be asked for by name, sorted."""
    return SOURCES.names()


@dataclass
class Subject:
    """A registered data set, or ``folder:PATH``, loaded once.

    Args:
        name: of the data set.
        root: folder of data files; None: the user's own.
    """

    name: str
    root: Path | None = None

    def load(self, image_size: int | None = None) -> Dataset:
        return load_dataset(self.name, image_size=image_size, root=self.root)

    @cached_property
    def data(self) -> Dataset:
        return self.load()


def images_are_uint8_squares_with_three_channels(subject: Subject) -> None:
    data = subject.data
    for part, images in (("train", data.train.images), ("test", data.test.images)):
        what = f"data set {subject.name}: {part} images"
        assert images.dtype == torch.uint8, f"{what} must be uint8, got {images.dtype}"
        assert images.dim() == 4, f"{what} must be (N, 3, H, W), got {tuple(images.shape)}"
        assert images.shape[1] == 3, f"{what} must be (N, 3, H, W), got {tuple(images.shape)}"
        assert images.shape[2] == images.shape[3], f"{what} must be square, got {tuple(images.shape)}"
        assert len(images) > 0, f"{what}: there are none"
    assert data.train.image_size == data.test.image_size, f"data set {subject.name}: train and test differ in size"
    assert int(data.train.images.max()) > 1, (
        f"data set {subject.name}: no pixel is above 1: values must be 0..255, not fractions"
    )


def labels_are_0_to_k_minus_1_and_every_class_has_images(subject: Subject) -> None:
    """Dense and from 0: a label is a position in ``classes``. Test images are of the same classes."""
    data = subject.data
    expected = list(range(data.num_classes))
    for part, labels in (("train", data.train.labels), ("test", data.test.labels)):
        found = sorted(set(labels.tolist()))
        what = f"data set {subject.name}: {part} labels"
        assert labels.dtype == torch.int64, f"{what} must be int64, got {labels.dtype}"
        assert found == expected, f"{what} must be 0..{data.num_classes - 1}, got {found[0]}..{found[-1]}, or miss some"


def classes_have_names_of_their_own(subject: Subject) -> None:
    """Two or more, each a text, no two alike; a registered source says beforehand how many."""
    classes = subject.data.classes
    assert len(classes) >= 2, f"data set {subject.name}: two classes or more are needed, got {len(classes)}"
    assert all(isinstance(name, str) and name for name in classes), f"data set {subject.name}: a class has no name"
    assert len(set(classes)) == len(classes), f"data set {subject.name}: two classes have the same name"
    if subject.name in SOURCES:
        source = SOURCES.get(subject.name)
        assert len(classes) == source.num_classes
        assert source.description, f"data set {subject.name}: a description of one line is missing"
        assert "\n" not in source.description, f"data set {subject.name}: the description is longer than a line"


def train_and_test_share_no_memory_and_hardly_an_image(subject: Subject) -> None:
    """A test image that was trained on measures memory. A few equal pictures happen in published sets."""
    data = subject.data
    first, second = sorted((data.train.images, data.test.images), key=Tensor.data_ptr)
    assert first.data_ptr() + first.nbytes <= second.data_ptr(), (
        f"data set {subject.name}: train and test images share memory"
    )
    seen = set(_rows(data.train.images))
    shared = sum(row in seen for row in _rows(data.test.images)) / len(data.test)
    assert shared <= 0.1, f"data set {subject.name}: {shared:.0%} of the test images are training images"


def _rows(images: Tensor) -> list[int]:
    return [hash(row.tobytes()) for row in images.contiguous().numpy()]


def images_have_the_size_that_was_asked_for(subject: Subject) -> None:
    for size in SIZES:
        data = subject.load(size)
        assert data.image_size == data.test.image_size == size, (
            f"data set {subject.name} at image_size {size} has images of {data.image_size} pixels"
        )
        assert torch.equal(data.train.labels, subject.data.train.labels), (
            f"data set {subject.name}: the labels depend on the image size"
        )


def loading_again_gives_the_same_data(subject: Subject) -> None:
    """Order included, and whatever the global random state, which stays as it was: victims are stored by it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        again = subject.load()
        assert torch.equal(torch.get_rng_state(), before), (
            f"data set {subject.name}: loading draws from the global generator"
        )
    data = subject.data
    for one, other in ((data.train, again.train), (data.test, again.test)):
        assert torch.equal(one.images, other.images), f"data set {subject.name} differs from load to load"
        assert torch.equal(one.labels, other.labels), f"data set {subject.name} differs from load to load"
    assert (again.classes, again.mean, again.std, again.flip) == (data.classes, data.mean, data.std, data.flip)


def the_fingerprint_is_that_of_the_pixels(subject: Subject) -> None:
    """It is part of every victim's key: the same for the same data, another one for other data."""
    data = subject.data
    assert data.fingerprint == subject.load().fingerprint, f"data set {subject.name}: a changing fingerprint"
    smaller = subject.load(SIZES[0] if data.image_size != SIZES[0] else SIZES[1])
    assert smaller.fingerprint != data.fingerprint, f"data set {subject.name}: one fingerprint for two image sizes"
    assert len(fingerprint_of(data.train, data.test)) == len(data.fingerprint)


def statistics_are_those_of_pixels_in_0_to_1(subject: Subject) -> None:
    for what, values, high in (("mean", subject.data.mean, 1.0), ("std", subject.data.std, 1.0)):
        assert len(values) == 3, f"data set {subject.name}: {what} must be three numbers"
        assert all(0.0 <= value <= high for value in values), (
            f"data set {subject.name}: {what} must be in units of [0, 1] pixels, got {values}"
        )
    assert min(subject.data.std) > 0.0, f"data set {subject.name}: std must be above 0"


def too_small_an_image_size_is_refused_in_one_line(subject: Subject) -> None:
    assert refusal(lambda: subject.load(4), DataError) is not None, (
        f"data set {subject.name}: image_size 4 is accepted; 8 is the least"
    )
