"""Claims of trainables.foreign.images: the user's images are read, or one line says what is wrong with them."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from superft.testing.toy_victims import toy
from trainables.data.images import DataError
from trainables.foreign.images import class_names, from_arrays, from_folder, from_npz, split, three_numbers

MUTANTS = 200


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERFT_DATA", str(tmp_path / "cache"))


def _folder(place: Path, counts: dict[str, int], side: int = 16) -> Path:
    """A folder of pictures, each with a grey of its own."""
    for number, (name, count) in enumerate(counts.items()):
        (place / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((side, side, 3), 10 * number, dtype=np.uint8)
            pixels[index % side, index // side] = 255
            Image.fromarray(pixels).save(place / name / f"{index}.png")
    return place


def test_folders_are_classes_in_sorted_order_or_in_the_one_given(tmp_path: Path) -> None:
    place = _folder(tmp_path / "photos", {"dog": 3, "cat": 2})
    found = from_folder(place)
    assert found.classes == ("cat", "dog")
    assert found.images.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.images.image_size == 16
    other = from_folder(place, size=8, classes=("dog", "cat"))
    assert sorted(other.images.labels.tolist()) == [0, 0, 0, 1, 1]
    assert int(other.images.images[other.images.labels == 1].float().mean()) >= 10  # the cats are the lighter ones
    assert other.images.image_size == 8
    with pytest.raises(DataError, match="folders dog are not among --classes"):
        from_folder(place, classes=("cat", "bird"))


def test_a_zip_and_a_training_part_are_read_as_well(tmp_path: Path) -> None:
    _folder(tmp_path / "photos" / "train", {"a": 2, "b": 2})
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in (tmp_path / "photos").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    for place in (tmp_path / "photos", tmp_path / "photos.zip"):
        assert len(from_folder(place).images) == 4


def test_images_of_several_sizes_ask_for_the_models(tmp_path: Path) -> None:
    place = _folder(tmp_path / "photos", {"a": 2})
    _folder(place, {"b": 2}, side=24)
    with pytest.raises(DataError, match="say with --size what the model was trained on"):
        from_folder(place)
    assert from_folder(place, size=16).images.images.shape == (4, 3, 16, 16)


def test_arrays_in_both_layouts_and_as_floats_are_the_same_images() -> None:
    data = toy().train
    first = from_arrays(data.images, data.labels)
    assert torch.equal(
        from_arrays(data.images.permute(0, 2, 3, 1).numpy(), data.labels.numpy()).images.images, first.images.images
    )
    assert torch.equal(from_arrays(data.images.float() / 255, data.labels.tolist()).images.images, first.images.images)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((4, 16, 16), np.uint8), np.zeros(4, int), "must be images uint8"),
        (np.zeros((4, 16, 16, 3), np.int64), np.zeros(4, int), "must be images uint8"),
        (np.full((4, 16, 16, 3), 2.0), np.zeros(4, int), r"must lie in \[0, 1\], got 2 to 2"),
        (np.zeros((4, 16, 12, 3), np.uint8), np.zeros(4, int), "must be square, got 16 x 12"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.zeros(3, int), "labels must be 4 whole numbers"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4), "labels must be 4 whole numbers"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.full(4, -1), "labels must be 0 or more"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.full(4, 10**12), "labels must be below 1,000,000"),
        (np.zeros((0, 16, 16, 3)), np.zeros(0, int), "holds no image"),
    ],
)
def test_other_arrays_are_refused(images: Any, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_arrays(images, labels)


def test_arrays_of_another_machines_byte_order_are_read() -> None:
    images, labels = np.zeros((4, 3, 16, 16)), np.arange(4)
    swapped = from_arrays(images.astype(">f4"), labels.astype(">i8"))
    assert swapped.images.labels.tolist() == [0, 1, 2, 3]


def _toy_part(keep: Any) -> Any:
    data = toy().train
    chosen = keep(data.labels)
    return from_arrays(data.images[chosen], data.labels[chosen])


@pytest.mark.parametrize(
    ("keep", "outputs", "words"),
    [
        (lambda labels: labels >= 0, 7, "10 classes, and the model has 7 outputs"),
        (lambda labels: labels >= 0, 12, r"no image of 2 of the model's 12 classes \(10, 11\)"),
        (lambda labels: labels != 4, 10, r"no image of 1 of the model's 10 classes \(4\)"),
        (lambda labels: torch.arange(len(labels)) < 10, 10, "10 images are too few"),
        (lambda labels: (labels != 4) | (labels == 4).cumsum(0).le(2), 10, r"too few of 4 \(2\)"),
    ],
)
def test_images_that_are_not_the_models_task_are_refused(keep: Any, outputs: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split(_toy_part(keep), outputs, seed=0)


def test_an_archive_of_arrays_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    data = toy().train
    np.savez_compressed(tmp_path / "good.npz", images=data.images.numpy(), labels=data.labels.numpy())
    assert torch.equal(from_npz(tmp_path / "good.npz").images.images, data.images)
    assert from_npz(tmp_path / "good.npz", size=8).images.image_size == 8
    np.savez(tmp_path / "names.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object), labels=np.zeros(1, int))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10**9, 32, 32, 3), "fortran_order": False, "descr": "|u1"})
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
        archive.writestr("labels.npy", b"")
    told = {
        "names": "must hold arrays images and labels",
        "objects": "Python objects",
        "lies": "damaged, images.npy would have 3072000000000 values in",
    }
    for name, words in told.items():
        with pytest.raises(DataError, match=words):
            from_npz(tmp_path / f"{name}.npz")


def test_damaged_archives_end_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4))
    whole, draw, told = (tmp_path / "whole.npz").read_bytes(), random.Random(0), 0
    for _ in range(MUTANTS):
        mutant = bytearray(whole)
        for _ in range(draw.choice([1, 1, 4, 30])):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        if draw.random() < 0.2:
            del mutant[draw.randrange(len(mutant)) :]
        (tmp_path / "mutant.npz").write_bytes(mutant)
        line = _told(tmp_path / "mutant.npz")
        assert "\n" not in (line or "")
        told += line is not None
    assert told > MUTANTS // 4  # a zip has checksums


def _told(path: Path) -> str | None:
    try:
        from_npz(path)
    except DataError as error:
        return str(error)
    return None


def test_options_are_read(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    assert class_names(str(tmp_path / "names.txt")) == class_names("cat, dog") == ("cat", "dog")
    assert three_numbers("0.5,.25,1e-1", "--mean") == (0.5, 0.25, 0.1)
    for given, words in (("a,a", "stands there twice"), ("a", "two classes or more")):
        with pytest.raises(DataError, match=words):
            class_names(given)
    for text in ("0.5", "a,b,c", "1,2,3,4", "nan,1,1", ""):
        with pytest.raises(DataError, match="--mean"):
            three_numbers(text, "--mean")
