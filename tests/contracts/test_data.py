"""The data sets that this machine can make under the shipped suite, and wrong ones that it must catch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from superft.testing.data import CHECKS
from superft.testing.data_checks import Subject
from tests.contracts.wrong import complaint, named
from trainables.data.images import Dataset, ImageSet

Check = Callable[[Subject], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise in a folder, 12 pixels."""
    base, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "emu"):
            (base / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / part / name / f"{number}.png")
    return base


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name = f"folder:{folder}" if request.param == "folder" else request.param
    return Subject(name, tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("subject", ["digits", "folder"], indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_data(subject: Subject, check: Check) -> None:
    check(subject)


@dataclass
class Changed(Subject):
    """The digits, changed by a function after they are read."""

    change: Callable[[Dataset], Dataset] = lambda data: data

    def load(self, image_size: int | None = None) -> Dataset:
        return self.change(super().load(image_size))


def relabelled(data: Dataset) -> Dataset:
    """Labels 1..K."""
    return replace(data, train=ImageSet(data.train.images, data.train.labels + 1))


def fractions(data: Dataset) -> Dataset:
    """Pixels in 0..1, as bytes."""
    return replace(data, train=ImageSet(data.train.images // 255, data.train.labels))


def shuffled(data: Dataset) -> Dataset:
    """In another order every time, drawn from the global generator."""
    return replace(data, train=data.train.subset(torch.randperm(len(data.train))))


def trained_on_test(data: Dataset) -> Dataset:
    return replace(data, test=data.train.subset(torch.arange(200)))


WRONG: dict[str, tuple[Callable[[Dataset], Dataset], str, str]] = {
    "labels 1..K": (relabelled, "labels_are_0_to_k_minus_1_and_every_class_has_images", "train labels must be 0..9"),
    "fractions": (fractions, "images_are_uint8_squares_with_three_channels", "no pixel is above 1"),
    "shuffled": (shuffled, "loading_again_gives_the_same_data", "draws from the global generator"),
    "test images in training": (
        trained_on_test,
        "train_and_test_share_no_memory_and_hardly_an_image",
        "100% of the test images are training images",
    ),
    "one set twice": (
        lambda data: replace(data, test=data.train),
        "train_and_test_share_no_memory_and_hardly_an_image",
        "share memory",
    ),
    "two equal names": (
        lambda data: replace(data, classes=("one",) * 10),
        "classes_have_names_of_their_own",
        "two classes have the same name",
    ),
    "mean in grey levels": (
        lambda data: replace(data, mean=(120.0, 120.0, 120.0)),
        "statistics_are_those_of_pixels_in_0_to_1",
        "mean must be in units of [0, 1] pixels",
    ),
    "one fingerprint for all": (
        lambda data: replace(data, fingerprint="0" * 32),
        "the_fingerprint_is_that_of_the_pixels",
        "one fingerprint for two image sizes",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_data_set_is_caught_and_what_is_wrong_is_named(wrong: str) -> None:
    change, check, message = WRONG[wrong]
    assert message in complaint(named(CHECKS, check), Changed("digits", change=change))


def test_one_size_whatever_is_asked_is_caught() -> None:
    class Stubborn(Subject):
        def load(self, image_size: int | None = None) -> Dataset:
            return super().load(16)

    message = complaint(named(CHECKS, "images_have_the_size_that_was_asked_for"), Stubborn("digits"))
    assert "at image_size 8 has images of 16 pixels" in message
    message = complaint(named(CHECKS, "too_small_an_image_size_is_refused_in_one_line"), Stubborn("digits"))
    assert "image_size 4 is accepted" in message
