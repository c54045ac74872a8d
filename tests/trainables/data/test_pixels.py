"""Claims on image files: the pixels that come of them, whatever kind of file it is, and that these never change."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.data.pictures import Pixels, noise, refused, write, zipped
from trainables.data.load import load_dataset

# Of the folder below, as the version before layouts and transparency were looked at computed it.
PLAIN = "e9a40b527a52973a6904c362e3fefa6d"


def pattern(seed: int, height: int = 12, width: int = 12) -> Pixels:
    rows, columns, channels = np.ogrid[:height, :width, :3]
    return ((rows * 7 + columns * (seed + 3) + channels * 31 + seed * seed * 13) % 256).astype(np.uint8)


def saved(path: Path, picture: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def with_alpha(pixels: Pixels, alpha: Pixels) -> Image.Image:
    return Image.fromarray(np.concatenate([pixels, alpha[..., None]], axis=2))


def palette(seed: int) -> Image.Image:
    picture = Image.fromarray(pattern(seed)[..., 0], "P")
    picture.putpalette(bytes((k * m) % 256 for k in range(256) for m in (3, 5, 7)))
    return picture


def first_image(folder: Path, root: Path) -> torch.Tensor:
    return load_dataset(f"folder:{folder}", root=root, image_size=12).train.images[0]


def test_fingerprints_of_plain_folders_never_change(root: Path, tmp_path: Path) -> None:
    """Every stored victim's key holds one: another fingerprint would train all of them again."""
    base = tmp_path / "plain"
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        saved(base / f"train/b_dog/{i}.ppm", Image.fromarray(pattern(30 + i)))
    saved(base / "train/Cat/10.png", Image.fromarray(pattern(0)))
    saved(base / "train/Cat/2.PNG", Image.fromarray(pattern(1, 12, 20)))
    saved(base / "train/Cat/opaque.png", with_alpha(pattern(2), np.full((12, 12), 255, np.uint8)))
    saved(base / "train/Cat/grey.png", Image.fromarray(pattern(3)).convert("L"))
    saved(base / "train/Cat/palette.png", palette(4))
    saved(base / "train/Cat/turned.png", Image.fromarray(pattern(5)), exif=exif)
    saved(base / "test/Cat/0.png", Image.fromarray(pattern(40)))
    saved(base / "test/b_dog/0.png", Image.fromarray(pattern(41)))
    data = load_dataset(f"folder:{base}", root=root)
    assert (data.classes, data.fingerprint) == (("Cat", "b_dog"), PLAIN)
    packed = zipped(base, tmp_path / "plain.zip", "plain/")
    assert load_dataset(f"folder:{packed}", root=root).fingerprint == PLAIN


def half_transparent_rgba() -> tuple[Image.Image, Pixels]:
    alpha = np.zeros((12, 12), np.uint8)
    alpha[:, 4:8], alpha[:, 8:] = 51, 255  # 51 = a fifth
    pixels = pattern(1)
    expected = np.where(alpha[..., None] == 255, pixels, 255).astype(float)
    expected[:, 4:8] = 255 * 0.8 + pixels[:, 4:8] * 0.2
    return with_alpha(pixels, alpha), expected.round().astype(np.uint8)


def half_transparent_grey() -> tuple[Image.Image, Pixels]:
    grey = pattern(2)[..., 0]
    alpha = np.where(np.arange(12) < 6, 0, 255).astype(np.uint8)[None].repeat(12, 0)
    expected = np.where(alpha == 0, 255, grey)[..., None].repeat(3, 2)
    return Image.fromarray(np.stack([grey, alpha], axis=2), "LA"), expected


def transparent_palette() -> tuple[Image.Image, Pixels]:
    picture = palette(3)
    see_through = int(np.asarray(picture)[0, 0])
    picture.info["transparency"] = see_through
    colours = np.asarray(palette(3).convert("RGB"))
    return picture, np.where(np.asarray(picture)[..., None] == see_through, 255, colours)


def transparent_colour() -> tuple[Image.Image, Pixels]:
    pixels = pattern(4)
    picture = Image.fromarray(pixels)
    picture.info["transparency"] = tuple(pixels[0, 0].tolist())
    return picture, np.where((pixels == pixels[0, 0]).all(2, keepdims=True), 255, pixels)


@pytest.mark.parametrize(
    "make", [half_transparent_rgba, half_transparent_grey, transparent_palette, transparent_colour]
)
def test_transparent_pixels_are_shown_on_white(
    root: Path, folder: Path, make: Callable[[], tuple[Image.Image, Pixels]], caplog: pytest.LogCaptureFixture
) -> None:
    picture, expected = make()
    saved(folder / "train/cat/0.png", picture, **picture.info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = first_image(folder, root)
    assert (expected == 255).any()
    difference = np.abs(image.numpy().astype(int) - expected.transpose(2, 0, 1).astype(int))
    assert difference.max() <= 1  # rounding of the mixture
    assert "1 image has transparent pixels, shown on white, first train/cat/0.png" in caplog.text


def test_shapes_that_lie_in_the_alpha_channel_alone_are_seen(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        alpha = np.zeros((12, 12), np.uint8)
        alpha[number : number + 4] = 255
        saved(folder / f"train/cat/{number}.png", with_alpha(np.zeros((12, 12, 3), np.uint8), alpha))
    name = f"folder:{folder}"
    for _ in range(3):  # said once in a process, also when it comes from the cache
        images = load_dataset(name, root=root).train.images
    assert (images[0, :, :4] == 0).all()
    assert (images[0, :, 4:] == 255).all()
    assert caplog.text.count("2 of 7 images have transparent pixels") == 1


def cmyk() -> Image.Image:
    return Image.fromarray(noise(1)).convert("CMYK")


def sixteen_bit_rgb() -> bytes:
    """A PNG with 16 bits per channel, which PIL cannot write: the value of `pattern`, then a low byte of 255."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    wide = np.stack([pattern(1), np.full((12, 12, 3), 255, np.uint8)], axis=3).reshape(12, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 12, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_inks_and_deep_colours_are_what_pil_makes_of_them(root: Path, folder: Path) -> None:
    buffer = io.BytesIO()
    cmyk().save(buffer, "TIFF")
    for name, content in (("0.tif", buffer.getvalue()), ("0.png", sixteen_bit_rgb())):
        for file in (folder / "train/cat").glob("0.*"):
            file.unlink()
        (folder / "train/cat" / name).write_bytes(content)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(first_image(folder, root).numpy(), expected)
    assert np.array_equal(expected, pattern(1).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_wrong_suffix_is_read_by_content(root: Path, folder: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise(5)).save(buffer, kind)
    (folder / "train/cat/0.png").write_bytes(buffer.getvalue())
    expected = np.asarray(Image.open(buffer).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(first_image(folder, root).numpy(), expected)


@pytest.mark.parametrize("which", [0, 1])  # the first image also decides on the size
@pytest.mark.parametrize("content", [b"", b"not an image", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_an_unreadable_file_is_named_by_its_path_and_not_by_an_object(
    root: Path, folder: Path, which: int, content: bytes
) -> None:
    bad = folder / f"train/cat/{which}.png"
    bad.write_bytes(content)
    for path in (folder, zipped(folder, folder.with_suffix(".zip"))):
        message = refused(f"folder:{path}", root)
        assert f"{path}/train/cat/{which}.png" in message
        assert "object at 0x" not in message
        assert "BytesIO" not in message


def test_a_folder_that_may_not_be_opened_is_one_line(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.scandir

    def guarded(path: Path) -> object:
        if str(path).endswith("train/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr("os.scandir", guarded)
    assert f"{folder}/train/dog cannot be read" in refused(f"folder:{folder}", root)


def test_a_single_picture_again_and_again_is_no_data_set(root: Path, folder: Path) -> None:
    for file in (folder / "test").rglob("*.*"):
        write(file, noise(3))
    message = refused(f"folder:{folder}", root)
    assert message.endswith("all 2 test images are the same picture; nothing can be told apart")
    for file in (folder / "train").rglob("*.*"):
        write(file, np.zeros((12, 12, 3), np.uint8))
    assert "all 5 training images are the same picture" in refused(f"folder:{folder}", root)
    write(folder / "train/dog/1.ppm", np.eye(12, dtype=np.uint8)[..., None].repeat(3, 2))
    assert "all 2 test images" in refused(f"folder:{folder}", root)
