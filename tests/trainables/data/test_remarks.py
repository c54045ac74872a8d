"""Claims on images that occur twice: they are counted by their pixels, and told in one line each."""

from pathlib import Path

import pytest
import torch

from tests.trainables.data.pictures import noise, write
from trainables.data.images import ImageSet
from trainables.data.load import load_dataset
from trainables.data.remarks import repeated


def images(*seeds: int, labels: list[int]) -> ImageSet:
    pixels = [torch.from_numpy(noise(seed).transpose(2, 0, 1).copy()) for seed in seeds]
    return ImageSet(torch.stack(pixels), torch.tensor(labels))


def remarks(train: ImageSet, test: ImageSet) -> tuple[str, ...]:
    return repeated(train, test, ("cat", "dog"), lambda index: f"image {index}")


def test_images_that_differ_get_no_remark() -> None:
    assert remarks(images(1, 2, labels=[0, 1]), images(3, 4, labels=[0, 1])) == ()


def test_the_same_picture_twice_in_one_class_of_one_part_is_no_matter() -> None:
    assert remarks(images(1, 1, 2, labels=[0, 0, 1]), images(3, 3, labels=[0, 0])) == ()


def test_test_images_that_were_trained_on_are_counted() -> None:
    (line,) = remarks(images(1, 2, 2, labels=[0, 1, 1]), images(3, 2, 1, 2, labels=[0, 1, 0, 1]))
    assert line.startswith("3 of 4 test images are also in the training set, with the same pixels, first image 4 = ")
    assert "first image 4 = image 1;" in line


def test_pictures_with_two_labels_are_counted_once_each() -> None:
    (line,) = remarks(images(1, 1, 2, 1, 2, labels=[0, 1, 0, 1, 1]), images(5, labels=[0]))
    assert line == "2 pictures have two labels, first image 0 (cat) = image 1 (dog)"
    leak, line = remarks(images(1, 2, labels=[0, 1]), images(1, labels=[1]))
    assert leak.startswith("1 of 1 test images is also in the training set")
    assert line == "1 picture has two labels, first image 0 (cat) = image 2 (dog)"


def test_a_folder_is_warned_of_once_by_paths_also_from_the_cache(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "train/dog/2.bmp", noise(0))  # the pixels of train/cat/0.png in another kind of file
    write(folder / "test/dog/0.png", noise(10))
    for _ in range(2):
        load_dataset(f"folder:{folder}", root=root)
    lines = [record.getMessage().removeprefix(f"folder:{folder}: ") for record in caplog.records[-2:]]
    assert lines[0].startswith("1 of 2 test images is also in the training set")
    assert "first test/dog/0.png = train/dog/0.ppm" in lines[0]
    assert lines[1] == "1 picture has two labels, first train/cat/0.png (cat) = train/dog/2.bmp (dog)"
    assert sum("also in the training set" in record.getMessage() for record in caplog.records) == 1


def test_a_copy_of_the_folder_is_warned_of_under_its_own_name(
    root: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "test/dog/0.png", noise(10))
    load_dataset(f"folder:{folder}", root=root)
    (folder).rename(tmp_path / "copy")
    load_dataset(f"folder:{tmp_path / 'copy'}", root=root)
    assert f"folder:{tmp_path / 'copy'}: 1 of 2 test images" in caplog.text
    assert len(list(root.glob("decoded/*.safetensors"))) == 1
