"""Files that processes and users share: where they lie by default, who writes, who may read."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from torch import Tensor

logger = logging.getLogger(__name__)


def cache_folder(variable: str, name: str) -> Path:
    """The folder that the environment ``variable`` names, else ``superft/NAME`` in the user's cache folder."""
    if given := os.environ.get(variable):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "superft" / name


@contextmanager
def locked(path: Path, *, required: bool = True) -> Iterator[bool]:
    """One process at a time, by a lock file beside ``path``; the kernel releases it when its holder dies.

    Gives whether the lock is held.

    Args:
        required: False: where no lock can be had (read-only folder, no flock) the work is done without.

    Raises:
        OSError, NotImplementedError: no lock can be had, but it is required.
    """
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if required:
            raise
        logger.debug("no lock on %s (%s)", path, error)
    try:
        yield lock.is_locked
    finally:
        lock.release()  # does nothing when it was never acquired


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file with the permissions of any new file (the umask's).

    safetensors alone writes 0600, which hides the file from others who share the folder.

    Raises:
        OSError: it could not be written (disk full).
    """
    from safetensors import SafetensorError  # here: all but the store and the cache of images works without it
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # says so in its text alone
        if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)
