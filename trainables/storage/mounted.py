"""A folder of a share where the kernel locks nothing (Lustre mounted without flock), as what a `lease` needs.

Files are created exclusively and replaced by renaming, which every shared file system does for all of its clients. The
times of files are not asked for: there some are by the server's clock and some by the client's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from trainables.storage.messages import one_line
from trainables.storage.remote import Remote, RemoteError

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def has_locks(folder: Path) -> bool:
    """Whether the kernel locks files in ``folder``, which exists (OSError: no file can be made there)."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return False
            raise
    return True


class Mounted(Remote):
    """Like `Remote`, of a folder of this machine's; for few and small files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        with self._telling(name), contextlib.suppress(FileNotFoundError):
            return (self._folder / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        with self._telling(name):
            aside = self._aside(name, content)
            os.replace(aside, self._folder / name)

    def create(self, name: str, content: bytes) -> bool:
        # Linked into place whole: readers of a file that is created and then written see it empty in between.
        with self._telling(name):
            aside = self._aside(name, content)
            try:
                os.link(aside, self._folder / name)
            except FileExistsError:
                return False
            finally:
                aside.unlink()
            return True

    def sizes(self, folder: str = "") -> dict[str, int]:
        with self._telling(folder), contextlib.suppress(FileNotFoundError), os.scandir(self._folder / folder) as found:
            names = sorted(item.name for item in found if not item.name.startswith("."))
            return dict.fromkeys((f"{folder}/{name}".lstrip("/") for name in names), 0)
        return {}

    def modified(self, name: str) -> datetime | None:
        return None

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with self._telling(name):
                (self._folder / name).unlink(missing_ok=True)

    def _aside(self, name: str, content: bytes) -> Path:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        aside.write_bytes(content)
        return aside

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RemoteError(f"{self._folder / name}: {error.strerror or one_line(error)}") from error
