"""A large file of tensors that is written piece by piece and opened mapped: no process ever holds the whole of it.

The format is safetensors (a header in JSON, padded with spaces as it allows, then the tensors without gaps), so that
other programs can read it. Its metadata has a digest of every block of `BLOCK` bytes, one of itself, and the time of
writing, which the file's own time of change is set to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.machine.cores import usable_cores

BLOCK = 2**22
# Files up to this size are checked whole whenever they are opened (a quarter of a second), and of larger ones SPOTS
# blocks; whole where their time of change says that they were written to.
WHOLE = 2**28
SPOTS = 16
# A private map that may be written to is otherwise counted against memory, and refused beyond it. Python has no name
# for it before 3.13.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
_TYPES = {"U8": torch.uint8, "I64": torch.int64}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_MOST = 100_000_000  # bytes of a header, as in safetensors

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class DamagedError(ValueError):
    """The file is not what was written."""


@dataclass(frozen=True)
class Spread:
    """Where every tensor of a layout lies: offsets from the start of the file, and its length."""

    layout: Layout
    start: int
    offsets: Mapping[str, int]
    length: int

    @classmethod
    def of(cls, layout: Layout, room: int) -> Spread:
        """Tensors in their order, of falling size of elements; ``room`` is what metadata may take, in bytes."""
        end = start = 8 + _rounded(room + 200 * len(layout) + 33 * (1 + _size(layout) // BLOCK))
        offsets = {}
        for name, (kind, shape) in layout.items():
            offsets[name] = end
            end += kind.itemsize * math.prod(shape)
        return cls(layout, start, offsets, end)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The file's first ``start`` bytes (OSError where ``room`` was too small)."""
        entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        for name, (kind, shape) in self.layout.items():
            begin = self.offsets[name] - self.start
            offsets = [begin, begin + kind.itemsize * math.prod(shape)]
            entries[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(entries).encode()
        if len(text) > self.start - 8:
            raise OSError(f"{len(text)} bytes of metadata, more than the {self.start - 8} that were left for them")
        return struct.pack("<Q", self.start - 8) + text.ljust(self.start - 8)


def allocate(file: int, spread: Spread) -> None:
    """Take the file's whole room on the disk now, so that a full disk is met before the work (OSError)."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, spread.length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # this file system knows no such thing
            raise
    os.truncate(file, spread.length)


def put(file: int, content: bytes | memoryview, at: int) -> None:
    """Write all of ``content`` at an offset; several threads may, at other places (OSError)."""
    left = memoryview(content).cast("B")
    while len(left):
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def seal(path: Path, file: int, spread: Spread, metadata: Mapping[str, str]) -> None:
    """Write the header of a file whose tensors are all there, and stamp it (OSError)."""
    written = str(int(time.time()))
    digests = b"".join(_digests(file, spread.start, range(_blocks(spread.start, spread.length))))
    whole = {**metadata, "written": written, "blocks": digests.hex()}
    put(file, spread.header({**whole, "digest": _digest_of(whole, spread.layout)}), 0)
    os.fsync(file)
    _stamp(path, written)


def tensors_in(file: int, spread: Spread) -> dict[str, Tensor]:
    """The tensors, mapped: read when they are used, shared by all processes, and what is changed stays here."""
    mapped = mmap.mmap(file, 0, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
    found = {}
    for name, (kind, shape) in spread.layout.items():
        count = math.prod(shape)
        flat = torch.frombuffer(mapped, dtype=kind, count=count, offset=spread.offsets[name]) if count else None
        found[name] = torch.empty(shape, dtype=kind) if flat is None else flat.view(shape)
    return found


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a sealed file, mapped, and its metadata.

    Raises:
        DamagedError: cut short, written to, or another format.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        spread, metadata = _header(file.read(8), file.read, length)
        if metadata.pop("digest", None) != _digest_of(metadata, spread.layout):
            raise DamagedError("the digest of its header differs")
        blocks, written = bytes.fromhex(metadata.pop("blocks")), metadata.pop("written")
        count = _blocks(spread.start, length)
        untouched = os.fstat(file.fileno()).st_mtime_ns == int(written) * 10**9
        every = not untouched or length <= WHOLE
        chosen = range(count) if every else sorted(random.sample(range(count), min(SPOTS, count)))
        for index, digest in zip(chosen, _digests(file.fileno(), spread.start, chosen), strict=True):
            if digest != blocks[16 * index : 16 * index + 16]:
                raise DamagedError(f"the digest of block {index + 1} of {count} differs")
        if not untouched:
            with suppress(OSError):  # not ours: it is checked whole each time
                _stamp(path, written)
        return tensors_in(file.fileno(), spread), metadata


def _header(prefix: bytes, read: Callable[[int], bytes], length: int) -> tuple[Spread, dict[str, str]]:
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MOST + 1
    if size > min(_MOST, length - 8):
        raise DamagedError("no header, or only a part of it")
    try:
        entries = json.loads(read(size))
        metadata = {str(name): str(value) for name, value in entries.pop("__metadata__").items()}
        layout = {name: (_TYPES[one["dtype"]], tuple(map(int, one["shape"]))) for name, one in entries.items()}
        offsets = {name: 8 + size + int(one["data_offsets"][0]) for name, one in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("its header is none") from error
    end = 8 + size + _size(layout)
    if end != length:
        raise DamagedError(f"{length} bytes instead of {end}")
    return Spread(layout, 8 + size, offsets, length), metadata


def _blocks(start: int, length: int) -> int:
    return -(-(length - start) // BLOCK)


def _digests(file: int, start: int, blocks: Iterable[int]) -> list[bytes]:
    """Of these blocks; the disk and the hash work outside Python's lock."""

    def digest(block: int) -> bytes:
        return hashlib.blake2b(os.pread(file, BLOCK, start + block * BLOCK), digest_size=16).digest()

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return list(pool.map(digest, blocks))


def _digest_of(metadata: Mapping[str, str], layout: Layout) -> str:
    shapes = {name: [_NAMES[kind], *shape] for name, (kind, shape) in layout.items()}
    return hashlib.sha256(json.dumps([dict(metadata), shapes], sort_keys=True).encode()).hexdigest()


def _stamp(path: Path, written: str) -> None:
    os.utime(path, ns=(int(written) * 10**9,) * 2)


def _size(layout: Layout) -> int:
    return sum(kind.itemsize * math.prod(shape) for kind, shape in layout.values())


def _rounded(size: int) -> int:
    return -(-size // 64) * 64
