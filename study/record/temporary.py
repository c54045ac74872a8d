"""Temporary folders with short names (Ray's sockets have a length limit); those of killed drivers are cleared away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "sft-"
NAME_BYTES = len(f"/{PREFIX}") + 8  # by which the folder's path is longer than its place's; `tempfile` draws 8 letters


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """A temporary folder for its owner alone, removed afterwards; a lock beside it says that its owner lives.

    The kernel releases the lock of a killed process, whatever machine or container shares the folder, so the next
    caller can tell what is left over.

    Args:
        place: where it is made; None: where the system has temporary folders (TMPDIR).
    """
    place = place or Path(tempfile.gettempdir())
    _remove_stale(place)
    handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".lock", dir=place)
    os.close(handle)
    folder = Path(name).with_suffix("")
    with FileLock(name):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(name).unlink(missing_ok=True)


def _remove_stale(place: Path) -> None:
    for guard in place.glob(f"{PREFIX}*.lock"):
        try:
            if guard.is_symlink() or guard.stat().st_uid != os.getuid():
                continue
            with FileLock(guard, timeout=0):
                folder = guard.with_suffix("")
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():  # a dying Ray may still write into it: next time, then
                    guard.unlink(missing_ok=True)
        except (Timeout, OSError):
            continue
