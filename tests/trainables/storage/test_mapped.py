"""Claims of storage.mapped: written in pieces, opened mapped, and damage is noticed without reading all of it."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.mapped import lies_in, needs_list_of_maps
from trainables.storage import mapped

COUNT = 100_000
CONTENT = torch.arange(COUNT, dtype=torch.int64) % 251


def write(path: Path) -> None:
    """Labels and as many bytes, the second half first."""
    layout = {"labels": (torch.int64, (COUNT,)), "bytes": (torch.uint8, (COUNT // 2, 2))}
    spread = mapped.Spread.of(layout, 100)
    with path.open("w+b") as file:
        mapped.allocate(file.fileno(), spread)
        content, half = CONTENT.to(torch.uint8).numpy().data, COUNT // 2
        mapped.put(file.fileno(), content[half:], spread.offsets["bytes"] + half)
        mapped.put(file.fileno(), content[:half], spread.offsets["bytes"])
        mapped.put(file.fileno(), CONTENT.numpy().data, spread.offsets["labels"])
        mapped.seal(path, file.fileno(), spread, {"note": "of a test"})


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 220 blocks."""
    monkeypatch.setattr(mapped, "BLOCK", 4096)
    write(tmp_path / "file.safetensors")
    return tmp_path / "file.safetensors"


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where blocks were read from."""
    read: list[int] = []
    original = os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        read.append(at)
        return original(file, size, at)

    monkeypatch.setattr(os, "pread", counting)
    return read


def test_what_was_put_in_pieces_is_there_and_other_programs_read_it(path: Path) -> None:
    tensors, metadata = mapped.opened(path)
    assert metadata == {"note": "of a test"}
    assert torch.equal(tensors["labels"], CONTENT)
    assert torch.equal(tensors["bytes"].reshape(-1).long(), CONTENT)
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("labels"), CONTENT)
        assert torch.equal(file.get_tensor("bytes").reshape(-1).long(), CONTENT)
        assert file.metadata()["note"] == "of a test"


@needs_list_of_maps
def test_tensors_lie_in_the_file_and_not_in_memory(path: Path) -> None:
    tensors, _ = mapped.opened(path)
    for tensor in tensors.values():
        assert lies_in(path, tensor)


def test_what_is_changed_in_a_process_stays_in_it(path: Path) -> None:
    tensors, _ = mapped.opened(path)
    tensors["labels"][:] = -1
    assert torch.equal(mapped.opened(path)[0]["labels"], CONTENT)


def test_a_small_file_is_checked_whole_and_a_large_one_in_spots(
    path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped.opened(path)
    assert len(set(blocks)) == 220
    blocks.clear()
    monkeypatch.setattr(mapped, "WHOLE", 2**16)
    mapped.opened(path)
    assert len(set(blocks)) == mapped.SPOTS


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_large_file_that_was_written_to_is_checked_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    monkeypatch.setattr(mapped, "WHOLE", 2**16)
    with path.open("r+b") as file:
        at = int(place * path.stat().st_size)
        file.seek(at)
        before = file.read(1)
        file.seek(at)
        file.write(bytes([before[0] ^ 1]))
    with pytest.raises(mapped.DamagedError):
        mapped.opened(path)


def test_a_copy_is_checked_whole_once(
    path: Path, tmp_path: Path, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "WHOLE", 2**16)
    copy = tmp_path / "copy.safetensors"
    shutil.copyfile(path, copy)
    mapped.opened(copy)
    assert len(set(blocks)) == 220
    blocks.clear()
    mapped.opened(copy)
    assert len(set(blocks)) == mapped.SPOTS


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: content[:-1],
        lambda content: content + b"0",
        lambda content: content[:100],
        lambda content: b"",
        lambda content: content.replace(b"of a test", b"of a tent"),
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + content[8:].replace(b"{", b"[", 1),
    ],
)
def test_a_file_of_another_length_or_header_is_noticed(path: Path, damaged: Callable[[bytes], bytes]) -> None:
    stamp = path.stat().st_mtime_ns
    path.write_bytes(damaged(path.read_bytes()))
    os.utime(path, ns=(stamp, stamp))  # as a copying tool leaves it that was cut off
    with pytest.raises(mapped.DamagedError):
        mapped.opened(path)


def test_metadata_beyond_their_room_are_refused_and_do_not_run_into_the_tensors(tmp_path: Path) -> None:
    spread = mapped.Spread.of({"labels": (torch.int64, (4,))}, 10)
    with pytest.raises(OSError, match="more than the"):
        spread.header({"note": "x" * 1000})


def test_an_empty_tensor_has_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    spread = mapped.Spread.of({"labels": (torch.int64, (3,)), "images": (torch.uint8, (0, 3, 8, 8))}, 100)
    with path.open("w+b") as file:
        mapped.allocate(file.fileno(), spread)
        mapped.seal(path, file.fileno(), spread, {})
    tensors, _ = mapped.opened(path)
    assert tensors["images"].shape == (0, 3, 8, 8)
    assert tensors["labels"].tolist() == [0, 0, 0]


def test_a_file_system_that_cannot_take_room_beforehand_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    write(tmp_path / "file.safetensors")
    assert torch.equal(mapped.opened(tmp_path / "file.safetensors")[0]["labels"], CONTENT)
