"""Claims of data.sources: what is read, how it is resized and cached, and one clear line for everything else."""

import logging
import os
import pickle
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import foreign
from tests.toy import toy_spec
from tests.trainables.data.pictures import noise, refused, remove, write, zipped
from trainables.data.images import DataError, Dataset
from trainables.data.load import DataSource, default_root, load_dataset
from trainables.data.sources import decoding
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


# --- cache ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of images each time files are decoded."""
    calls: list[int] = []
    original = decoding._decode

    def counting(name: str, tree: Any, paths: Any, *how: Any) -> list[int]:
        calls.append(len(paths))
        return original(name, tree, paths, *how)

    monkeypatch.setattr(decoding, "_decode", counting)
    return calls


def same(a: Dataset, b: Dataset) -> bool:
    pairs = ((a.train, b.train), (a.test, b.test))
    equal = all(torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs)
    return equal and (a.classes, a.mean, a.std, a.fingerprint) == (b.classes, b.mean, b.std, b.fingerprint)


def cache_file(root: Path) -> Path:
    (file,) = root.glob("decoded/*.safetensors")
    return file


def test_images_are_decoded_once_per_size(root: Path, folder: Path, decodings: list[int]) -> None:
    name = f"folder:{folder}"
    first = load_dataset(name, root=root)
    assert same(load_dataset(name, root=root), first)
    assert decodings == [7]
    load_dataset(name, root=root, image_size=16)
    assert decodings == [7, 7]


@pytest.mark.parametrize("change", ["replaced", "added", "moved to another class"])
def test_changed_folder_is_decoded_again(root: Path, folder: Path, decodings: list[int], change: str) -> None:
    before = load_dataset(f"folder:{folder}", root=root)
    if change == "replaced":
        write(folder / "train/cat/1.png", noise(99))
        os.utime(folder / "train/cat/1.png", ns=(1, 1))
    elif change == "added":
        write(folder / "train/cat/9.png", noise(99))
    else:
        (folder / "train/cat/2.png").rename(folder / "train/dog/2.png")
    after = load_dataset(f"folder:{folder}", root=root)
    assert len(decodings) == 2
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "class names"])
def test_damaged_cache_is_named_and_made_again(
    root: Path, tmp_path: Path, folder: Path, decodings: list[int], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = load_dataset(f"folder:{folder}", root=tmp_path / "another")
    load_dataset(f"folder:{folder}", root=root)
    file = cache_file(root)
    content = file.read_bytes()
    changed = {
        "cut": content[:-50],
        "bit": content[:-1] + bytes([content[-1] ^ 1]),
        "empty": b"",
        "class names": content.replace(b"dog", b"cow"),
    }[damage]
    file.write_bytes(changed)
    assert same(load_dataset(f"folder:{folder}", root=root), first)
    assert f"{file} are damaged" in caplog.text
    assert len(decodings) == 3
    load_dataset(f"folder:{folder}", root=root)
    assert len(decodings) == 3


def test_two_that_ask_at_once_decode_once(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = decoding._decode

    def slow(*arguments: Any) -> list[int]:
        calls.append(1)
        time.sleep(0.2)  # the second arrives while the first is at work
        return original(*arguments)

    monkeypatch.setattr(decoding, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: load_dataset(f"folder:{folder}", root=root), range(2))
    assert same(one, two)
    assert len(calls) == 1


def test_nothing_half_written_stays_behind(root: Path, folder: Path) -> None:
    load_dataset(f"folder:{folder}", root=root)
    file = cache_file(root)
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{file.name}.lock"}
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_folder_that_cannot_be_written_only_costs_the_cache(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file where the data folder should be")
    assert len(load_dataset(f"folder:{folder}", root=occupied).train) == 5
    assert "decoded images were not kept in" in caplog.text


# --- sets with a name ----------------------------------------------------------------------------------------------

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
