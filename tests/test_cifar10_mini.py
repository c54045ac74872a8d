"""Claims of benchmarks.cifar10_mini: which images are taken, and that both sources give a folder data set of them."""

import io
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import cifar10_mini
from trainables.data.load import load_dataset

SMALL = {"train": (10, 3), "test": (6, 2)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CIFAR-10, but with 10 training and 6 test images of every class."""
    monkeypatch.setattr(cifar10_mini, "PARTS", SMALL)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, *_: os.path.isfile(path))


def level(part: str, label: int, number: int) -> int:
    """Grey of the ``number``-th image of a class: every image has another."""
    return 16 * label + number + (8 if part == "test" else 0)


def archive(folder: Path) -> Path:
    """``cifar-10-python.tar.gz`` of flat grey images, the classes taking turns."""
    path = folder / "cifar-10-python.tar.gz"

    def batch(part: str, numbers: range) -> bytes:
        grey = [(label, level(part, label, number)) for number in numbers for label in range(10)]
        rows = np.repeat(np.array([value for _, value in grey], dtype=np.uint8)[:, None], 3072, axis=1)
        return pickle.dumps({"data": rows, "labels": [label for label, _ in grey]})

    files = {f"data_batch_{i + 1}": batch("train", range(2 * i, 2 * i + 2)) for i in range(5)}
    files["test_batch"] = batch("test", range(6))
    files["batches.meta"] = pickle.dumps({"label_names": list(cifar10_mini.CLASSES)})
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar10_mini", *map(str, arguments)])
    cifar10_mini.main()


def test_the_numbers_taken_are_those_of_our_file_and_the_same_for_every_class() -> None:
    train, test = (cifar10_mini.chosen(of, count) for of, count in cifar10_mini.PARTS.values())
    assert (len(set(train)), len(set(test))) == (1000, 200)
    assert train[:8] == [7, 13, 22, 25, 29, 32, 40, 48]
    assert train[-3:] == [4965, 4973, 4974]
    assert test[:8] == [6, 21, 25, 29, 34, 35, 44, 45]
    assert test[-3:] == [989, 995, 999]


def test_the_archive_gives_the_chosen_images_of_every_class_as_jpeg(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mini.zip"
    run(monkeypatch, "--archive", archive(tmp_path), "--out", out)
    data = load_dataset(f"folder:{out}", root=tmp_path / "data")
    assert data.classes == cifar10_mini.CLASSES
    for part, images in (("train", data.train), ("test", data.test)):
        wanted = [level(part, label, number) for label in range(10) for number in cifar10_mini.chosen(*SMALL[part])]
        assert images.images[:, 0, 0, 0].tolist() == wanted
        assert images.labels.tolist() == [label for label in range(10) for _ in range(SMALL[part][1])]
    with zipfile.ZipFile(out) as made, Image.open(io.BytesIO(made.read(made.namelist()[0]))) as picture:
        assert picture.format == "JPEG"
        assert list(picture.quantization[0])[:3] == [8, 6, 5], "quality 75"  # type: ignore[attr-defined]
    again = tmp_path / "again.zip"
    run(monkeypatch, "--archive", tmp_path / "cifar-10-python.tar.gz", "--out", again)
    assert again.read_bytes() == out.read_bytes()


def test_a_copy_of_the_repository_gives_its_own_files(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, (of, _) in SMALL.items():
        for name in cifar10_mini.CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(of):
                (tmp_path / part / name / f"{number:04d}.jpg").write_bytes(f"{part} {name} {number}".encode())
    run(monkeypatch, "--images", tmp_path, "--out", tmp_path / "mini.zip")
    with zipfile.ZipFile(tmp_path / "mini.zip") as made:
        assert len(made.namelist()) == 50
        number = cifar10_mini.chosen(*SMALL["test"])[0]
        assert made.read(f"test/frog/{number:04d}.jpg").decode() == f"test frog {number}"


def test_what_is_missing_or_is_no_cifar_10_is_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mini.zip"
    for source, words in (
        (("--images", tmp_path), "0007.jpg"),
        (("--archive", tmp_path / "no.tar.gz"), "no.tar.gz"),
        (("--archive", archive(tmp_path)), "cifar10: no complete copy"),  # checksums are not the published ones
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, *source, "--out", out)
        assert words in str(ended.value)
        assert "\n" not in str(ended.value)
        assert not out.exists()
