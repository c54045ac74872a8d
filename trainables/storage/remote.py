"""Folders behind a URI (``s3://bucket/x``), through fsspec: whole objects, and every failure in one clear line.

Credentials and endpoint are those of the protocol's own driver (for ``s3://`` the usual AWS_* variables).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from trainables.storage.messages import one_line

# Where files lie: a path of this machine (or of a shared mount), or, as a str, a URI.
Place = Path | str

URI = re.compile(r"[a-z][a-z0-9+.-]*://")
# Folders do not exist there, and "making" one would make a bucket.
WITHOUT_FOLDERS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"}
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> our optional dependency
LONGEST_CAUSE = 300  # characters


def leads_out(name: str) -> bool:
    """Whether the name of an object, taken as a file's, may lie outside the folder that it is put into."""
    return name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/")


class RemoteError(OSError):
    """Storage behind a URI that cannot be reached, read or written; the message names it and why, in one line."""


def is_uri(text: str) -> bool:
    """Whether it names its protocol: ``s3://bucket/x``, ``file:///x``."""
    return URI.match(text) is not None


def as_place(text: str | Path) -> Place:
    """A URI as a str, everything else as a path; ``file:///x`` is the path ``/x`` and works exactly like it."""
    if isinstance(text, Path) or not is_uri(text):
        return Path(text)
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    return text.rstrip("/")


class Remote:
    """One folder behind a URI. Names of objects are relative to it, with ``/``.

    Args:
        uri: such as ``s3://bucket/folder``; nothing is contacted until the first use.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """The object's content; None when there is none."""
        with self._clearly(name):
            try:
                content: bytes = self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None
            return content

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Likewise of several, side by side where the driver can."""
        with self._clearly(""):
            found = self._fs.cat([self._at(name) for name in names], on_error="return") if names else {}
            contents: list[bytes | None] = []
            for name in names:
                content = found.get(self._at(name))
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
                contents.append(content if isinstance(content, bytes) else None)
            return contents

    def write(self, name: str, content: bytes) -> None:
        """Put or replace one object: readers see the old one or the new one."""
        with self._clearly(name):
            self._make_folder(name)
            self._fs.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Put an object that must not be there yet: False, and nothing is changed, where it is.

        Of two that do so at once one wins, wherever the storage can promise that (S3, Google and Azure can).
        """
        with self._clearly(name):
            self._make_folder(name)
            try:
                self._fs.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except TypeError:  # a driver that has no such mode
                if self._fs.exists(self._at(name)):
                    return False
                self._fs.pipe_file(self._at(name), content)
            return True

    def upload(self, path: Path, name: str) -> None:
        """Put or replace one object with a file's content."""
        with self._clearly(name):
            self._make_folder(name)
            self._fs.put_file(str(path), self._at(name))

    def download(self, name: str, path: Path) -> bool:
        """Write the object's content to a file; False when there is no such object."""
        with self._clearly(name):
            try:
                self._fs.get_file(self._at(name), str(path))
            except FileNotFoundError:
                return False
            return True

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every object below ``folder``, by name, sorted.

        Raises:
            RemoteError: also where a name would lead out of a folder that it is copied to.
        """
        with self._clearly(folder):
            self._fs.invalidate_cache()  # others write here too
            try:
                found = self._fs.find(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._root) + 1
            sizes = {path[start:]: int(info["size"] or 0) for path, info in sorted(found.items())}
        for name in sizes:
            if leads_out(name):
                raise RemoteError(f"{self.uri}: its object {name!r} would lead out of a folder; remove it")
        return sizes

    def modified(self, name: str) -> datetime | None:
        """When the object was written, by the storage's own clock; None where it does not say, or there is none."""
        with self._clearly(name):
            self._fs.invalidate_cache()
            try:
                when: datetime = self._fs.modified(self._at(name))
            except (FileNotFoundError, NotImplementedError):
                return None
            return when

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are no mistake."""
        with self._clearly(""):
            try:
                if names:
                    self._fs.rm([self._at(name) for name in names])
            except FileNotFoundError:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm_file(self._at(name))

    def check(self) -> None:
        """Write a small object and remove it (RemoteError where that fails)."""
        self.write(".probe", b"")
        self.delete([".probe"])

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(self.uri.partition("://")[0])
            remedy = f"; pip install 'superft[{extra}]'" if extra and isinstance(error, ImportError) else ""
            raise RemoteError(f"{self.uri}: {error}{remedy}") from error
        return fs, root.rstrip("/")

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _make_folder(self, name: str) -> None:
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        if not WITHOUT_FOLDERS.intersection(protocols):
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _clearly(self, name: str) -> Iterator[None]:
        try:
            yield
        except RemoteError:
            raise
        # Drivers raise what their client libraries do, most of it no OSError; here it all means the same.
        except Exception as error:
            cause = one_line(error)[:LONGEST_CAUSE]
            raise RemoteError(f"{self.uri}{f'/{name}' if name else ''}: {cause}") from error
