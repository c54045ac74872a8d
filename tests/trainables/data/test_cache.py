"""Claims of sources.cache: decoded once, into a file that is mapped, whoever asks and whatever happens to it."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.mapped import lies_in, needs_list_of_maps
from tests.test_architecture import ROOT
from tests.trainables.data.pictures import noise, write
from trainables.data.load import load_dataset
from trainables.data.sources import cache, decoding
from trainables.storage import mapped, progress

LOADS = """
import sys, time
from pathlib import Path
from trainables.data.load import load_dataset
from trainables.data.sources import decoding

original = decoding._pixels
decoded = 0

def counting(*arguments):
    global decoded
    decoded += 1
    time.sleep(float(sys.argv[3]))  # the other one arrives while this is at work
    return original(*arguments)

decoding._pixels = counting
print("ready", flush=True)
print(load_dataset(f"folder:{sys.argv[1]}", root=Path(sys.argv[2])).fingerprint, decoded)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = tmp_path / "pictures"
    for part, count in (("train", 12), ("test", 4)):
        for index in range(count):
            write(base / part / "ab"[index % 2] / f"{index}.png", noise(100 * count + index))
    return base


def started(folder: Path, root: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOADS, str(folder), str(root), str(pause)], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )


def test_of_two_processes_at_once_one_decodes(folder: Path, tmp_path: Path) -> None:
    both = [started(folder, tmp_path / "data", 0.1) for _ in range(2)]
    found = [one.communicate(timeout=120)[0].split()[1:] for one in both]
    assert {fingerprint for fingerprint, _ in found} == {load_dataset(f"folder:{folder}", root=tmp_path).fingerprint}
    assert sorted(int(decoded) for _, decoded in found) == [0, 16]


def test_what_a_killed_process_leaves_is_written_over(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    killed = started(folder, root, 60.0)
    for _ in range(600):
        if list(root.glob("decoded/.*.part")):
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(list(root.glob("decoded/.*.part"))) == 1
    assert (
        load_dataset(f"folder:{folder}", root=root).fingerprint
        == load_dataset(f"folder:{folder}", root=tmp_path).fingerprint
    )
    assert not list(root.glob("decoded/.*"))


@needs_list_of_maps
def test_images_are_mapped_from_the_file_also_by_whoever_made_it(folder: Path, tmp_path: Path) -> None:
    kept = [load_dataset(f"folder:{folder}", root=tmp_path / "data") for _ in range(2)]
    (file,) = (tmp_path / "data").glob("decoded/*.safetensors")
    for data in kept:
        for images in (data.train.images, data.test.images):
            assert lies_in(file, images)


def test_a_set_that_was_decoded_before_is_opened_without_a_look_at_its_pixels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_dataset(f"folder:{folder}", root=tmp_path / "data")

    def never(*_: object) -> None:
        raise AssertionError("a pass over all pixels")

    monkeypatch.setattr(mapped, "WHOLE", 0)
    for module, name in ((cache, "fingerprint_of"), (cache, "channel_statistics"), (decoding, "repeated")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("trainables.data.load.channel_statistics", never)
    monkeypatch.setattr("trainables.data.load.fingerprint_of", never)
    again = load_dataset(f"folder:{folder}", root=tmp_path / "data")
    assert (again.fingerprint, again.mean, again.std) == (first.fingerprint, first.mean, first.std)


def test_what_a_user_does_to_loaded_images_does_not_reach_the_file(folder: Path, tmp_path: Path) -> None:
    first = load_dataset(f"folder:{folder}", root=tmp_path / "data")
    before = first.train.images.clone()
    first.train.images.zero_()
    assert torch.equal(load_dataset(f"folder:{folder}", root=tmp_path / "data").train.images, before)


@pytest.mark.parametrize("call", ["allocate", "put", "seal"])
def test_a_full_disk_costs_the_file_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    usual = load_dataset(f"folder:{folder}", root=tmp_path / "data")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mapped, call, full)
    data = load_dataset(f"folder:{folder}", root=tmp_path / "full")
    assert data.fingerprint == usual.fingerprint
    assert torch.equal(data.train.images, usual.train.images)
    assert (data.mean, data.std) == (usual.mean, usual.std)
    assert "were not kept" in caplog.text
    assert "No space left" in caplog.text
    assert not list((tmp_path / "full").glob("decoded/*.safetensors"))
    assert not list((tmp_path / "full").glob("decoded/.*"))


def test_decoding_tells_how_far_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(decoding, "PART", 4)
    with caplog.at_level(logging.INFO, "trainables"):
        load_dataset(f"folder:{folder}", root=tmp_path / "data")
    for done in (4, 8, 12):
        assert f"decoded {done} of 16 images, " in caplog.text
