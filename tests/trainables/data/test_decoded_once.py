"""Claims of sources.decoding: images are decoded once per size, and a cache that cannot be used costs only time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.trainables.data.pictures import noise, same, write
from trainables.data.load import load_dataset
from trainables.data.sources import decoding


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
