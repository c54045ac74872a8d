"""Claims on ``folder:PATH``: which layouts are read, in what order, and what is said of the rest."""

import logging
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trainables.data.pictures import noise, refused, remove, write, zipped
from trainables.data.images import Dataset
from trainables.data.load import load_dataset


def loaded(base: Path, root: Path) -> Dataset:
    return load_dataset(f"folder:{base}", root=root)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- sub-folders -----------------------------------------------------------------------------------------------------


def test_sub_folders_of_class_folders_are_read(root: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(folder / "train/cat/batch2/deep/0.png", noise(50))
    write(folder / "train/cat/batch2/0.png", noise(51))
    data = loaded(folder, root)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1]
    expected = [noise(seed).transpose(2, 0, 1) for seed in (0, 1, 2, 51, 50, 10, 11)]
    assert np.array_equal(data.train.images.numpy(), np.stack(expected))
    assert warnings(caplog) == []


def test_files_and_order_are_those_of_torchvision(root: Path, folder: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for number, ending in enumerate(IMG_EXTENSIONS):
        kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(ending)
        options = {"lossless": True} if ending == ".webp" else {}
        write(folder / f"train/dog/{number % 3}/x{number}{ending.upper()}", noise(60 + number), format=kind, **options)
    write(folder / "train/dog/0 b/x.png", noise(80))  # sorts before "0/..." by folder, after it by path
    write(folder / "train/dog/0/b/x.png", noise(81))
    (folder / "train/dog/0/x.gif").write_bytes(b"GIF89a")
    theirs = ImageFolder(folder / "train")
    ours = loaded(folder, root)
    assert (list(ours.classes), ours.train.labels.tolist()) == (theirs.classes, theirs.targets)
    pixels = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture, _ in theirs])
    assert len(pixels) == 3 + 2 + len(IMG_EXTENSIONS) + 2
    assert np.array_equal(ours.train.images.numpy(), pixels)


def test_a_link_to_a_folder_above_itself_is_refused(root: Path, folder: Path) -> None:
    (folder / "train/cat/loop").symlink_to(folder / "train/cat", target_is_directory=True)
    assert "remove the link to a folder above itself" in refused(f"folder:{folder}", root)


def test_images_in_no_class_and_folders_in_no_part_are_told(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "train/lost.png", noise(50))
    write(folder / "test/lost.png", noise(51))
    write(folder / "val/cat/0.png", noise(52))
    assert len(loaded(folder, root).train) == 5
    beside, files = warnings(caplog)
    assert beside.endswith("train/ and test/ are read; left out: val/")
    assert "left out 2 files that are no image" in files
    assert files.endswith("first train/lost.png")


# --- names of the parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "test"),
        ("training", "testing"),
        ("train", "val"),
        ("Training_Set", "Validation"),
        ("training_set/training_set", "test_set/test_set"),
    ],
)
def test_parts_under_other_names_are_the_same_data(root: Path, folder: Path, train: str, test: str) -> None:
    before = loaded(folder, root)
    for old, new in (("train", train), ("test", test)):
        (folder / old).rename(folder / "aside")
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / "aside").rename(folder / new)
    assert loaded(folder, root).fingerprint == before.fingerprint


def test_our_own_names_go_before_others_and_two_others_are_refused(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = loaded(folder, root)
    write(folder / "Train/wolf/0.png", noise(50))
    assert loaded(folder, root).fingerprint == before.fingerprint
    assert warnings(caplog)[0].endswith("left out: Train/")
    (folder / "train").rename(folder / "training")
    message = refused(f"folder:{folder}", root)
    assert f"Train/ and training/ in {folder} may both be the train part; rename the right one to train/" in message


def flat(base: Path) -> None:
    for part in ("train", "test"):
        for one in list((base / part).iterdir()):
            (base / one.name).mkdir(exist_ok=True)
            for file in one.iterdir():
                file.rename(base / one.name / f"{part}{file.name}")
        remove(base / part)


def into(base: Path, outer: str) -> None:
    for part in ("train", "test"):
        (base / outer).mkdir(exist_ok=True)
        (base / part).rename(base / outer / part)
    (base / "models").mkdir()


def only_class(base: Path) -> None:
    (base / "wrap").mkdir()
    for one in list((base / "train").iterdir()):
        one.rename(base / "wrap" / one.name)
    (base / "wrap").rename(base / "train/wrap")


def unsorted_test(base: Path) -> None:
    remove(base / "test")
    write(base / "test/0.png", noise(50))


def tiny_as_downloaded(base: Path) -> None:
    remove(base / "test")
    write(base / "val/images/val_0.png", noise(50))
    write(base / "test/images/test_0.png", noise(51))
    (base / "val/val_annotations.txt").write_text("val_0.png\tcat\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flat, "but 2 folders of images (cat, dog): if these are the classes, move them into train/, and some images"),
        (lambda base: into(base, "data"), "but in its folder data/; give that folder alone"),
        (lambda base: (base / "train").rename(base / "learn"), "(found learn/, test/)"),
        (lambda base: (base / "test").rename(base / "check"), "and no val/ in its place; images go into train/CLASS/"),
        (only_class, "only one class, 'wrap', in {base}/train; two or more are needed (if cat, dog in it are the"),
        (unsorted_test, "no class folders in {base}/test, and the classes of the 1 image in it are not known"),
        (tiny_as_downloaded, "Tiny ImageNet as it is downloaded, which `dataset: tiny_imagenet` reads"),
    ],
)
def test_other_layouts_are_answered_with_what_was_found_and_what_to_do(
    root: Path, folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    assert message.format(base=folder) in refused(f"folder:{folder}", root)


def test_val_is_the_test_part_where_the_classes_of_test_are_not_known(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tiny ImageNet with its val part sorted into classes."""
    before = loaded(folder, root)
    (folder / "test").rename(folder / "val")
    for one in ("cat", "dog"):
        (folder / f"train/{one}").rename(folder / "aside")
        (folder / f"train/{one}").mkdir()
        (folder / "aside").rename(folder / f"train/{one}/images")
        (folder / f"train/{one}/{one}_boxes.txt").write_text("0 0 1 1")
    (folder / "val/images").mkdir()
    (folder / "val/val_annotations.txt").write_text("")
    write(folder / "test/images/test_0.png", noise(50))
    assert loaded(folder, root).fingerprint == before.fingerprint
    beside, files = warnings(caplog)
    assert beside.endswith("train/ and val/ are read; left out: test/")
    assert files.endswith("first train/cat/cat_boxes.txt")


# --- Kaggle's traffic signs ------------------------------------------------------------------------------------------


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    """As Kaggle has GTSRB: classes 0, 1, 2, 10, and four test images in one folder."""
    base = tmp_path / "signs"
    for label in (0, 1, 2, 10):
        write(base / f"Train/{label}/0.png", noise(label))
    rows = ["Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"]
    for number, label in enumerate((10, 2, 0, 1)):
        write(base / f"Test/{number:05d}.png", noise(20 + number))
        rows.append(f"12,12,1,1,9,9,{label},Test/{number:05d}.png")
    (base / "Test.csv").write_text("\n".join(rows) + "\n")
    write(base / "Meta/0.png", noise(90))
    return base


def test_test_images_with_a_table_beside_them_get_its_classes(
    root: Path, signs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = loaded(signs, root)
    assert data.classes == ("0", "1", "10", "2")
    assert [data.classes[label] for label in data.test.labels.tolist()] == ["10", "2", "0", "1"]
    assert np.array_equal(data.test.images[1].numpy(), noise(21).transpose(2, 0, 1))
    (line,) = warnings(caplog)
    assert line.endswith(": Train/ and Test/ are read; left out: Meta/")


def test_classes_of_the_table_are_numbers_whatever_zeros_the_folders_have(root: Path, signs: Path) -> None:
    before = loaded(signs, root)
    for label in (0, 1, 2, 10):
        (signs / f"Train/{label}").rename(signs / f"Train/{label:05d}")
    (signs / "Test").rename(signs / "test")
    (signs / "Train").rename(signs / "train")
    data = loaded(signs, root)
    assert [int(data.classes[label]) for label in data.test.labels.tolist()] == [10, 2, 0, 1]
    assert np.array_equal(data.test.images.numpy(), before.test.images.numpy())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ClassId", "Class", "Test.csv needs the columns ClassId and Path"),
        (",10,Test", ",77,Test", "Test.csv has the class '77', which is not among the training classes"),
        ("00002.png", "9.png", "1 image cannot be read, first {base}/Test/9.png (no such file)"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(root: Path, signs: Path, old: str, new: str, message: str) -> None:
    table = signs / "Test.csv"
    table.write_text(table.read_text().replace(old, new))
    assert message.format(base=signs) in refused(f"folder:{signs}", root)


def test_test_images_that_the_table_does_not_name_are_told(
    root: Path, signs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(signs / "Test/00009.png", noise(70))
    assert len(loaded(signs, root).test) == 4
    assert warnings(caplog)[1].endswith("first Test/00009.png")


# --- names of the classes --------------------------------------------------------------------------------------------


def renamed(base: Path, part: str, old: str, new: str) -> None:
    (base / part / old).rename(base / part / new)


def test_names_are_equal_after_unicode_normalisation(root: Path, folder: Path) -> None:
    before = loaded(folder, root)
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert composed != decomposed
    renamed(folder, "train", "cat", decomposed)
    renamed(folder, "test", "cat", composed)
    data = loaded(folder, root)
    assert (data.classes, data.fingerprint) == ((composed, "dog"), before.fingerprint)
    write(folder / f"train/{composed}/9.png", noise(50))  # a file system that keeps both holds one class
    assert np.bincount(loaded(folder, root).train.labels).tolist() == [4, 2]


def test_test_classes_in_other_letters_are_the_same_where_only_one_can_be_meant(root: Path, folder: Path) -> None:
    before = loaded(folder, root)
    renamed(folder, "test", "cat", "CAT")
    assert loaded(folder, root).fingerprint == before.fingerprint
    renamed(folder, "test", "CAT", "cat")
    write(folder / "train/CAT/0.png", noise(50))  # letters, say: "a" and "A" are two classes
    write(folder / "test/CAT/0.png", noise(51))
    assert loaded(folder, root).classes == ("CAT", "cat", "dog")
    renamed(folder, "test", "CAT", "Cat")
    renamed(folder, "test", "cat", "cAt")
    assert "test class 'Cat' is not in" in refused(f"folder:{folder}", root)


# --- zip files -------------------------------------------------------------------------------------------------------


def test_zip_with_backslashes_and_other_capitals_is_the_same_data(root: Path, folder: Path, tmp_path: Path) -> None:
    before = loaded(folder, root)
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for path in ("Train\\", "Train\\cat\\"):
            made = zipfile.ZipInfo("x")
            made.filename = path
            archive.writestr(made, b"")
        for file in sorted(folder.rglob("*.*")):
            made = zipfile.ZipInfo("x")  # the constructor would mend the name
            made.filename = str(file.relative_to(folder)).replace("/", "\\").replace("t", "T", 1)
            archive.writestr(made, file.read_bytes())
    assert loaded(tmp_path / "windows.zip", root).fingerprint == before.fingerprint


def test_stray_files_beside_and_within_the_folder_are_no_matter(
    root: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = loaded(folder, root)
    packed = zipped(folder, tmp_path / "packed.zip", "./archive/pictures/")
    with zipfile.ZipFile(packed, "a") as archive:
        for stray in (
            "__MACOSX/archive/pictures/train/cat/._0.png",
            "__MACOSX/._archive",
            ".DS_Store",
            "README.md",
            "archive/LICENSE",
            "archive/pictures/train/.DS_Store",
            "archive/pictures/train/cat/Thumbs.db",
            "archive/pictures/train/dog/desktop.ini",
        ):
            archive.writestr(stray, b"stray")
    assert loaded(packed, root).fingerprint == before.fingerprint
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert loaded(tmp_path / "unpacked", root).fingerprint == before.fingerprint
    assert warnings(caplog) == []
