"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def append_whole(descriptor: int, content: bytes, path: Path, *, wait: bool) -> None:
    """Append all of ``content`` to the file ``path``, open as ``descriptor``, or nothing.

    Args:
        wait: until it is on the disk.

    Raises:
        OSError: it does not fit (disk full); half a line left behind would glue itself to the next one.
    """
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, content)
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes of a row fit into {path}; free some disk space")
        if wait:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: readers, and whoever comes after a crash, see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
