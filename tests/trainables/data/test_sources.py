"""Claims of data.sources: what is read, how it is resized, and one clear line for everything else."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import foreign
from tests.toy import toy_spec
from tests.trainables.data.pictures import noise, refused, remove, write, zipped
from trainables.data.images import DataError
from trainables.data.load import DataSource, default_root, load_dataset
from trainables.data.sources.base import SOURCES, channel_statistics
from trainables.plugins.load import load as load_plugins

# --- names and sizes -----------------------------------------------------------------------------------------------


def test_unknown_data_set_suggests_the_nearest_and_lists_all(root: Path) -> None:
    message = refused("cifar-10", root)
    assert "unknown dataset 'cifar-10': did you mean 'cifar10'?" in message
    assert all(name in message for name in (*SOURCES.names(), "folder:PATH"))


def test_a_bare_path_is_answered_with_the_folder_form(root: Path, folder: Path) -> None:
    assert f"did you mean 'folder:{folder}'?" in refused(str(folder), root)


@pytest.mark.parametrize("size", [7, 0, -1])
def test_images_below_8_pixels_are_refused(root: Path, size: int) -> None:
    assert refused("digits", root, image_size=size) == f"image_size: must be 8 pixels or more, got {size}"


def test_root_is_superft_data_unless_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERFT_DATA", str(tmp_path / "elsewhere"))
    assert default_root() == tmp_path / "elsewhere"
    with pytest.raises(DataError, match="elsewhere"):
        load_dataset("cifar10")
    monkeypatch.delenv("SUPERFT_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_root() == Path.home() / ".cache/superft/data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "superft/data"


def test_only_sets_of_natural_photographs_are_mirrored() -> None:
    assert {name for name, source in SOURCES.items() if source.flip} == {"cifar10", "stl10", "tiny_imagenet"}


# --- digits --------------------------------------------------------------------------------------------------------

DIGITS_FIRST_TEST_LABELS = [9, 1, 3, 5, 7, 0, 2, 9, 5, 8, 1, 0, 7, 2, 6, 3, 3, 6, 1, 9]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_are_split_1297_to_500_with_every_class_in_proportion(root: Path, size: int) -> None:
    digits = load_dataset("digits", image_size=size, root=root)
    assert digits.train.images.shape == (1297, 3, size, size)
    assert digits.test.images.shape == (500, 3, size, size)
    train, test = (torch.bincount(part.labels, minlength=10) for part in (digits.train, digits.test))
    assert ((train + test) * 500 / 1797 - test).abs().max() < 1
    assert not digits.flip
    assert not root.exists()


def test_digits_keep_their_values_and_have_three_equal_channels(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_dataset("digits", image_size=8, root=root)
    assert torch.equal(digits.train.images[:, 0], digits.train.images[:, 2])
    ours = torch.cat([digits.train.images, digits.test.images])[:, 0].double()
    original = torch.from_numpy(load_digits().images)
    assert ours.sum() == pytest.approx(float(original.sum() * 255 / 16), rel=1e-3)
    assert ours.max() == 255


def test_digits_split_never_moves(root: Path) -> None:
    """Pinned: another split would silently change every number measured on digits."""
    assert load_dataset("digits", image_size=8, root=root).test.labels[:20].tolist() == DIGITS_FIRST_TEST_LABELS
    assert load_dataset("digits", root=root).fingerprint == load_dataset("digits", root=root).fingerprint


# --- statistics ----------------------------------------------------------------------------------------------------


def test_channel_statistics_equal_those_of_float_pixels() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 2] = 40
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std[:2] == pytest.approx(pixels[:, :2].std((0, 2, 3), correction=0).tolist())
    assert std[2] == 1.0


# --- folders and zip files -----------------------------------------------------------------------------------------


def test_folder_gives_the_pixels_of_its_files_in_sorted_order(root: Path, folder: Path) -> None:
    data = load_dataset(f"folder:{folder}", root=root)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    expected = np.stack([noise(seed) for seed in (0, 1, 2, 10, 11)]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.images.numpy(), expected)
    assert (data.mean, data.std) == channel_statistics(data.train.images)


def test_a_folder_is_mirrored_as_cifar10_is_unless_its_owner_says_no(root: Path, folder: Path) -> None:
    assert load_dataset(f"folder:{folder}", root=root).flip is SOURCES.get("cifar10").flip is True
    refused = DataSource(f"folder:{folder}", root=root, flip=False).load()
    assert not refused.flip
    assert refused.fingerprint == load_dataset(f"folder:{folder}", root=root).fingerprint
    spec = toy_spec("badnets")
    assert spec.name(refused) != spec.name(load_dataset(f"folder:{folder}", root=root))


def test_known_sets_say_themselves_whether_they_are_mirrored(root: Path) -> None:
    with pytest.raises(DataError, match="flip is of folder:PATH alone, digits knows by itself"):
        load_dataset("digits", root=root, flip=True)


def test_jpeg_endings_count_in_any_case(root: Path, folder: Path) -> None:
    for ending in ("jpg", "JPEG", "Jpg"):
        write(folder / f"train/dog/photo.{ending}", noise(5), format="JPEG")
    assert torch.bincount(load_dataset(f"folder:{folder}", root=root).train.labels).tolist() == [3, 5]


@pytest.mark.parametrize("prefix", ["", "pictures/"])
def test_zip_file_gives_the_same_data_as_the_folder(root: Path, folder: Path, tmp_path: Path, prefix: str) -> None:
    packed = zipped(folder, tmp_path / "packed.zip", prefix)
    unpacked, from_zip = load_dataset(f"folder:{folder}", root=root), load_dataset(f"folder:{packed}", root=root)
    assert from_zip.fingerprint == unpacked.fingerprint
    assert from_zip.classes == unpacked.classes


def test_folder_size_is_that_of_the_first_training_image_up_to_64(root: Path, folder: Path) -> None:
    assert load_dataset(f"folder:{folder}", root=root).image_size == 12
    write(folder / "train/cat/0.png", noise(0, 100, 80))
    assert load_dataset(f"folder:{folder}", root=root).image_size == 64
    write(folder / "train/cat/0.png", noise(0, 20, 5))
    assert load_dataset(f"folder:{folder}", root=root).image_size == 8
    assert load_dataset(f"folder:{folder}", root=root, image_size=10).image_size == 10


def test_longer_side_is_cut_around_the_centre(root: Path, folder: Path) -> None:
    wide = np.zeros((12, 36, 3), dtype=np.uint8)
    wide[:, 12:24] = 200  # the centre square is uniform, what lies outside is black
    write(folder / "train/cat/0.png", wide)
    assert (load_dataset(f"folder:{folder}", root=root).train.images[0] == 200).all()
    write(folder / "train/cat/0.png", wide.transpose(1, 0, 2))
    assert (load_dataset(f"folder:{folder}", root=root).train.images[0] == 200).all()


def test_shrinking_is_antialiased(root: Path, folder: Path) -> None:
    """A one-pixel checkerboard becomes grey; picking every n-th pixel would leave it black or white."""
    board = (np.indices((48, 48)).sum(0) % 2 * 255).astype(np.uint8)
    write(folder / "train/cat/0.png", np.repeat(board[..., None], 3, axis=2))
    image = load_dataset(f"folder:{folder}", root=root, image_size=12).train.images[0]
    assert 110 < image.min() <= image.max() < 145


def test_grey_and_palette_images_become_rgb(root: Path, folder: Path) -> None:
    Image.fromarray(noise(0)).convert("L").save(folder / "train/cat/0.png")
    Image.fromarray(noise(1)).convert("RGBA").save(folder / "train/cat/1.png")
    Image.fromarray(noise(2)).quantize(16).save(folder / "train/cat/2.png")
    images = load_dataset(f"folder:{folder}", root=root).train.images
    assert torch.equal(images[0, 0], images[0, 2])
    assert np.array_equal(images[1].numpy(), noise(1).transpose(2, 0, 1))


def test_photographs_are_turned_upright(root: Path, folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    write(folder / "train/cat/0.png", noise(0), exif=exif)
    upright = np.rot90(noise(0), 2).transpose(2, 0, 1)
    assert np.array_equal(load_dataset(f"folder:{folder}", root=root).train.images[0].numpy(), upright)


def test_other_files_are_ignored_aloud_and_hidden_ones_silently(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "train/cat/.hidden").write_text("x")
    (folder / "train/.cache").mkdir()
    load_dataset(f"folder:{folder}", root=root)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (folder / "train/cat/notes.txt").write_text("x")
    load_dataset(f"folder:{folder}", root=root)
    assert "left out 1 file that is no image (.jpg, " in caplog.text
    assert "first train/cat/notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda base: remove(base), "does not exist"),
        (lambda base: remove(base / "train"), "no train/ in"),
        (lambda base: remove(base / "test"), "no test/ in"),
        (lambda base: [remove(base / "train" / name) for name in ("cat", "dog")], "no class folders in"),
        (lambda base: remove(base / "train/dog"), "only one class, 'cat'"),
        (lambda base: [file.unlink() for file in (base / "train/dog").iterdir()], "train/dog has no images"),
        (lambda base: remove(base / "test/dog"), "test/dog has no images"),
        (lambda base: (base / "test/dog").rename(base / "test/wolf"), "test class 'wolf' is not in"),
        (lambda base: (base / "train/cat/1.png").write_bytes(b"no image"), "1 image cannot be read, first"),
        (lambda base: (base / "train/cat/0.png").write_bytes(b"no image"), "train/cat/0.png cannot be read"),
    ],
)
def test_folder_that_is_no_task_is_refused_in_one_line(
    root: Path, folder: Path, break_it: Callable[[Path], object], message: str
) -> None:
    break_it(folder)
    assert message in refused(f"folder:{folder}", root)


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_unreadable_images_are_counted_and_the_first_is_named(root: Path, folder: Path, damage: bytes | None) -> None:
    for file in (folder / "train/cat/2.png", folder / "test/dog/0.png"):
        file.write_bytes(file.read_bytes()[:200] if damage is None else damage)
    message = refused(f"folder:{folder}", root)
    assert "2 of 7 images cannot be read" in message
    assert str(folder / "train/cat/2.png") in message


def test_sixteen_bit_grey_is_refused_rather_than_clipped_to_white(root: Path, folder: Path) -> None:
    Image.fromarray(np.full((12, 12), 30000, dtype=np.uint16)).save(folder / "train/cat/1.png")
    assert "more than 8 bits per value" in refused(f"folder:{folder}", root)


def test_file_that_is_neither_folder_nor_zip_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    assert "neither a folder nor a readable zip file" in refused(f"folder:{tmp_path / 'x.zip'}", root)
    assert "names no path" in refused("folder:", root)


def test_damaged_member_of_a_zip_is_named(root: Path, folder: Path, tmp_path: Path) -> None:
    packed = zipped(folder, tmp_path / "packed.zip")
    content, pixels = bytearray(packed.read_bytes()), (folder / "train/dog/1.ppm").read_bytes()
    content[content.index(pixels[20:60])] ^= 0xFF
    packed.write_bytes(content)
    assert "train/dog/1.ppm (Bad CRC-32" in refused(f"folder:{packed}", root)


def test_real_images_load_with_plausible_statistics(root: Path) -> None:
    given = os.environ.get("SUPERFT_TEST_DATA")
    if not given:
        pytest.skip("SUPERFT_TEST_DATA names no zip file or folder of real images")
    data = load_dataset(f"folder:{given}", root=root, image_size=32)
    assert data.num_classes >= 2
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert torch.bincount(data.train.labels, minlength=data.num_classes).min() > 0
    assert all(0.1 < m < 0.9 for m in data.mean)
    assert all(0.05 < s < 0.5 for s in data.std)
    assert load_dataset(f"folder:{given}", root=root, image_size=32).fingerprint == data.fingerprint


# --- sources of somebody else's -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_as_before")
def test_labels_from_one_are_refused_in_one_line(tmp_path: Path) -> None:
    load_plugins([foreign.put(tmp_path, "plug_ones.py", foreign.data("ones", first=1))])
    message = refused("ones", tmp_path)
    assert message == ("ones: training labels must be 0 to 3 (positions in the list of 4 classes), got 1 to 4")


@pytest.mark.usefixtures("_as_before")
def test_a_source_says_what_a_study_of_it_gets_by_default(tmp_path: Path) -> None:
    load_plugins([foreign.put(tmp_path, "plug_squares.py", foreign.data("squares"))])
    loaded = load_dataset("squares", root=tmp_path)
    assert (loaded.num_classes, loaded.image_size) == (4, 16)
    assert (SOURCES.get("squares").width, SOURCES.get("squares").recipe) == (4, "quick")
    assert (SOURCES.get("digits").width, SOURCES.get("digits").recipe) == (8, "quick")
    assert SOURCES.get("cifar10").width is None
