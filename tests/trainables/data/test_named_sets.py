"""Claims of data sets with a name: read with their constants, and refused in one line where a part is missing."""

import logging
import os
import pickle
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainables.data.pictures import noise, refused, remove, same, write, zipped
from trainables.data.load import load_dataset
from trainables.data.sources.base import SOURCES, channel_statistics

MISSING = {
    "cifar10": "cifar-10-batches-py/",
    "cifar100": "cifar-100-python/",
    "gtsrb": "GTSRB/Final_Training/Images",
    "stl10": "stl10_binary/",
    "svhn": "train_32x32.mat",
    "tiny_imagenet": "tiny-imagenet-200.zip",
}


@pytest.mark.parametrize("name", list(MISSING))
def test_missing_files_are_answered_with_name_folder_and_remedy(name: str, root: Path) -> None:
    message = refused(name, root)
    assert message.startswith(f"{name}: ")
    assert str(root) in message
    assert MISSING[name] in message
    assert ("--download" in message) == (name != "tiny_imagenet")
    assert not root.exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "stl10", "svhn"])
def test_failing_network_is_one_line(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", offline)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", offline)
    message = refused(name, root, download=True)
    assert message.startswith(f"{name}: download to {root} failed (Name or service not known); check the network")


def test_tiny_imagenet_says_that_it_is_not_fetched(root: Path) -> None:
    message = refused("tiny_imagenet", root, download=True)
    assert "not fetched by --download" in message
    assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in message


def without_checksums(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The small files of these tests cannot have the published checksums; whether files exist is still checked."""
    monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, *_: os.path.isfile(path))


def pickled(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_cifar10_is_read_with_its_constants(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch, "cifar")
    base = root / "cifar-10-batches-py"
    rows = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    for i in range(5):
        pickled(base / f"data_batch_{i + 1}", {"data": rows[2 * i : 2 * i + 2], "labels": [i, i + 5]})
    pickled(base / "test_batch", {"data": rows[10:], "labels": [3, 9]})
    pickled(base / "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    data = load_dataset("cifar10", root=root)
    assert data.train.images.shape == (10, 3, 32, 32)
    assert np.array_equal(data.train.images.numpy(), rows[:10].reshape(10, 3, 32, 32))
    assert data.train.labels.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert data.test.labels.tolist() == [3, 9]
    assert data.classes[9] == "class 9"
    assert (data.mean, data.std, data.flip) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), True)
    assert load_dataset("cifar10", root=root, image_size=64).test.images.shape == (2, 3, 64, 64)


def test_damaged_cifar_is_not_even_unpickled(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "cifar-10-batches-py"
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        pickled(base / name, {"data": np.zeros((1, 3072), np.uint8), "labels": [0]})

    def opened(*_: object, **__: object) -> None:
        pytest.fail("a file with a wrong checksum was unpickled")

    monkeypatch.setattr("torchvision.datasets.cifar.pickle.load", opened)
    assert "no complete copy in" in refused("cifar10", root)


def test_cifar100_uses_fine_labels_and_is_not_mirrored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch, "cifar")
    base = root / "cifar-100-python"
    for part, labels in (("train", [99, 0]), ("test", [42])):
        rows = np.arange(len(labels), dtype=np.uint8)[:, None].repeat(3072, axis=1)
        pickled(base / part, {"data": rows, "fine_labels": labels, "coarse_labels": [1] * len(labels)})
    pickled(base / "meta", {"fine_label_names": [str(i) for i in range(100)]})
    data = load_dataset("cifar100", root=root)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([99, 0], [42])
    assert (data.mean, data.flip) == ((0.5071, 0.4865, 0.4409), False)


def test_svhn_calls_the_digit_zero_class_zero(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    without_checksums(monkeypatch, "svhn")
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)  # height, width, channel, image
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [9], [3]])})
    data = load_dataset("svhn", root=root)
    assert data.train.labels.tolist() == [1, 0, 9, 3]
    assert np.array_equal(data.train.images.numpy(), pixels.transpose(3, 2, 0, 1))
    assert data.mean == channel_statistics(data.train.images)[0]


def test_stl10_is_upright_shrunk_to_32_and_cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_checksums(monkeypatch, "stl10")
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    image = np.zeros((3, 96, 96), np.uint8)
    image[:, :48] = 200  # upper half bright; files hold columns first
    for part, labels in (("train", [1, 10, 3]), ("test", [2, 2])):
        pictures = np.stack([image.transpose(0, 2, 1)] * len(labels))
        pictures[0, 0, 0, 48] = 255  # one pixel of the first is another, near the seam: the pictures vary
        pictures.tofile(base / f"{part}_X.bin")
        np.array(labels, dtype=np.uint8).tofile(base / f"{part}_y.bin")
    (base / "unlabeled_X.bin").touch()
    data = load_dataset("stl10", root=root)
    assert data.train.images.shape == (3, 3, 32, 32)
    assert (data.train.images[:, :, :15] == 200).all()
    assert (data.train.images[:, :, 17:] == 0).all()
    assert data.train.labels.tolist() == [0, 9, 2]
    assert data.classes[9] == "truck"
    (base / "unlabeled_X.bin").unlink()  # torchvision would refuse now; the cached copy is used
    assert same(load_dataset("stl10", root=root), data)
    assert load_dataset("stl10", root=root, image_size=32).image_size == 32
    assert "stl10: no complete copy" in refused("stl10", root, image_size=48)


def gtsrb(root: Path, training: str = "Final_Training/Images") -> Path:
    base = root / "gtsrb"
    for label in range(43):
        write(base / f"GTSRB/{training}/{label:05d}/00000_00000.ppm", noise(label, 15 + label, 20))
        (base / f"GTSRB/{training}/{label:05d}/GT-{label:05d}.csv").write_text("Filename;Width\n")
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i, label in enumerate((16, 1)):
        write(base / f"GTSRB/Final_Test/Images/{i:05d}.ppm", noise(100 + i, 40, 30))
        lines.append(f"{i:05d}.ppm;30;40;5;5;25;35;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return base


def test_gtsrb_reads_the_final_benchmark_at_32_pixels(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    gtsrb(root)
    data = load_dataset("gtsrb", root=root)
    assert data.train.images.shape == (43, 3, 32, 32)
    assert data.train.labels.tolist() == list(range(43))
    assert data.test.labels.tolist() == [16, 1]
    stretched = Image.fromarray(noise(100, 40, 30)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(data.test.images[0].numpy(), np.asarray(stretched).transpose(2, 0, 1))
    assert (data.mean, data.std, data.flip) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_gtsrb_of_torchvision_is_read_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    gtsrb(root, training="Training")
    assert len(load_dataset("gtsrb", root=root).train) == 43
    assert "26,640 images" in caplog.text


def test_gtsrb_with_parts_missing_says_which(root: Path) -> None:
    base = gtsrb(root)
    (base / "GT-final_test.csv").write_text("Filename,ClassId\n0.ppm,1\n")
    assert "needs the columns Filename and ClassId" in refused("gtsrb", root)
    (base / "GT-final_test.csv").unlink()
    assert "GT-final_test.csv is missing" in refused("gtsrb", root)
    gtsrb(root)
    remove(base / "GTSRB/Final_Training/Images/00007")
    assert "class folder 00007" in refused("gtsrb", root)


@pytest.fixture
def tiny_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official layout with two classes instead of 200."""
    monkeypatch.setitem(SOURCES._things, "tiny_imagenet", replace(SOURCES.get("tiny_imagenet"), num_classes=2))
    base = root / "tiny-imagenet-200"
    for name in ("n02", "n01"):
        for i in range(2):
            write(base / f"train/{name}/images/{name}_{i}.JPEG", noise(i, 64, 64))
        (base / f"train/{name}/{name}_boxes.txt").write_text("")
    for i in range(2):
        write(base / f"val/images/val_{i}.JPEG", noise(9 + i, 64, 64))
    (base / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\nval_1.JPEG\tn01\t0\t0\t62\t62\n")
    write(base / "test/images/test_0.JPEG", noise(50, 64, 64))
    return base


@pytest.mark.usefixtures("tiny_imagenet")
def test_tiny_imagenet_tests_on_its_labelled_val_part(root: Path) -> None:
    data = load_dataset("tiny_imagenet", root=root)
    assert data.train.images.shape == (4, 3, 64, 64)
    assert data.classes == ("n01", "n02")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 0]
    assert load_dataset("tiny_imagenet", root=root, image_size=32).image_size == 32


def test_tiny_imagenet_is_read_from_its_zip(root: Path, tiny_imagenet: Path) -> None:
    unpacked = load_dataset("tiny_imagenet", root=root)
    zipped(tiny_imagenet, root / "tiny-imagenet-200.zip", "tiny-imagenet-200/")
    remove(tiny_imagenet)
    assert same(load_dataset("tiny_imagenet", root=root), unpacked)


@pytest.mark.parametrize("inner", ["", "images/"])
def test_tiny_imagenet_with_val_sorted_into_classes_is_the_same_data(
    root: Path, tiny_imagenet: Path, inner: str
) -> None:
    for i in (10, 2):  # in the table by number, which is not the order of names
        write(tiny_imagenet / f"val/images/val_{i}.JPEG", noise(9 + i, 64, 64))
    rows = [f"val_{i}.JPEG\t{name}\t0\t0\t1\t1" for i, name in ((0, "n02"), (1, "n01"), (2, "n01"), (10, "n01"))]
    (tiny_imagenet / "val/val_annotations.txt").write_text("\n".join(rows))
    before = load_dataset("tiny_imagenet", root=root)
    for row in rows:
        file, name = row.split("\t")[:2]
        target = tiny_imagenet / f"val/{name}/{inner}{file}"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tiny_imagenet / "val/images" / file).rename(target)
    remove(tiny_imagenet / "val/images")
    assert same(load_dataset("tiny_imagenet", root=root), before)
    (tiny_imagenet / f"val/n02/{inner}val_0.JPEG").unlink()
    assert "no images in" in refused("tiny_imagenet", root)


def test_incomplete_tiny_imagenet_is_refused(root: Path, tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tiny_imagenet / "val/val_annotations.txt").open("a") as file:
        file.write("val_2.JPEG\tn03\t0\t0\t1\t1\n")
    assert "line 3 names no known class" in refused("tiny_imagenet", root)
    (tiny_imagenet / "val/val_annotations.txt").write_text("val_7.JPEG\tn01\t0\t0\t1\t1\n")
    assert "val/images/val_7.JPEG" in refused("tiny_imagenet", root)
    monkeypatch.setitem(SOURCES._things, "tiny_imagenet", replace(SOURCES.get("tiny_imagenet"), num_classes=200))
    (tiny_imagenet / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t1\t1\n")
    assert "found 2 classes" in refused("tiny_imagenet", root)
    (tiny_imagenet / "val/val_annotations.txt").unlink()
    assert "val/val_annotations.txt is missing" in refused("tiny_imagenet", root)
