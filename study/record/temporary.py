"""Temporary folders with short paths (Ray's sockets have a length limit); those of killed drivers are cleared away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "sft-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, removed afterwards; a lock beside it says that its owner lives.

    The kernel releases the lock of a killed process, whatever machine or container shares the folder, so the next
    caller can tell what is left over.
    """
    _remove_stale()
    handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=".lock")
    os.close(handle)
    folder = Path(name).with_suffix("")
    with FileLock(name):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(name).unlink(missing_ok=True)


def _remove_stale() -> None:
    for guard in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.lock"):
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
