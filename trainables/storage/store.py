"""Artifacts under a content key: written once, verified on every load, shared by all processes.

A store lies in a folder, or behind a URI (`remote_store`). An artifact is a folder of safetensors files and one JSON
file with their checksums; loading it runs no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainables.storage.files import cache_folder, locked, save_tensors
from trainables.storage.lease import Lease
from trainables.storage.mounted import Mounted, has_locks
from trainables.storage.remote import Place, as_place, is_uri

log = logging.getLogger("superft.store")

META = "artifact.json"
# A file that is not there is damage; what else goes wrong (no permission, a mount that is gone) may pass.
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class DamagedArtifactError(ValueError):
    """A stored artifact that fails its checks; the message names the file."""


class StoreUnavailableError(OSError):
    """A store that cannot be reached, read or written (no space, no permission, gone); the message names it and why.

    The request was right: the same one may succeed later.
    """


def default_store() -> Place:
    """SUPERFT_STORE (a folder or a URI), or `superft/store` in the user's cache folder."""
    given = os.environ.get("SUPERFT_STORE")
    return as_place(given) if given and is_uri(given) else cache_folder("SUPERFT_STORE", "store")


def content_key(identity: Mapping[str, Any]) -> str:
    """Hex digest of a JSON-able description; equal descriptions have equal keys whatever their order."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """Named groups of tensors (one safetensors file each) and JSON-able facts about them."""

    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Store:
    """Artifacts under one folder, which several processes (and nodes) may share."""

    root: Path

    @property
    def where(self) -> Place:
        """What people call it."""
        return self.root

    def path(self, name: str) -> Path:
        """Folder of the artifact ``name`` (readable prefix and content key)."""
        return self.root / name

    def derived(self) -> Store:
        """The store within this one of what can be computed again from its artifacts: it may be deleted at any time."""
        return Store(self.root / "derived")

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process at a time for one artifact, and free again when its holder dies.

        The kernel sees to that; on a share without its locks a claim does, which its holder renews.
        """
        with contextlib.ExitStack() as stack:
            with self._available("locked"):
                self.root.mkdir(parents=True, exist_ok=True)
                if has_locks(self.root):
                    stack.enter_context(locked(self.root / f".{name}"))
                else:
                    stack.enter_context(Lease(Mounted(self.root), f".locks/{name}").waiting())
            yield

    def check(self) -> None:
        """Write a file and remove it (StoreUnavailableError where that fails)."""
        with self._available("written"):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass

    def holds(self, name: str) -> bool:
        """Whether there is such an artifact, whole or damaged (StoreUnavailableError)."""
        with self._available("read"):
            for look in (1, 2):
                try:
                    return stat.S_ISDIR(self.path(name).stat().st_mode)
                except NotADirectoryError:
                    return False
                except FileNotFoundError:
                    # A client of NFS remembers for up to a minute that a name was not there, and forgets it when the
                    # folder is opened: another node may have renamed the artifact into place since.
                    if look == 2 or name.partition("/")[0] not in _names_in(self.root):
                        return False
            return False

    def save(self, name: str, artifact: Artifact) -> None:
        """Write the artifact aside, then rename it into place; call it under the lock.

        Raises:
            StoreUnavailableError: it could not be written whole (disk full); nothing is left of it.
        """
        with self._available("written"):
            self._save(name, artifact)

    def _save(self, name: str, artifact: Artifact) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for stale in self.root.glob(f".{name}.tmp-*"):  # of a process that was killed while writing
            shutil.rmtree(stale, ignore_errors=True)
        temporary = self.root / f".{name}.tmp-{os.getpid()}"
        temporary.mkdir()
        try:
            _write(temporary, artifact)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # half an artifact on a full disk helps nobody
            raise
        self._put_away(name)
        temporary.rename(self.path(name))

    def _put_away(self, name: str) -> None:
        """Remove an artifact: at once under its name, and then from the disk as far as it goes.

        On NFS a file that a process of this machine still has open keeps its folder from being removed.
        """
        old = self.root / f".{name}.tmp-{os.getpid()}.old"
        with contextlib.suppress(FileNotFoundError):
            self.path(name).rename(old)
            shutil.rmtree(old, ignore_errors=True)

    def load(self, name: str) -> Artifact | None:
        """The artifact, verified; None when there is none.

        Raises:
            DamagedArtifactError: a file is missing, truncated or altered; the message names it.
            StoreUnavailableError: nothing can be read there now.
        """
        with self._available("read"):
            return self._load(name) if self.holds(name) else None

    def _load(self, name: str) -> Artifact:
        from safetensors.torch import load_file  # here: see `files.save_tensors`

        folder = self.path(name)
        try:
            meta = json.loads((folder / META).read_text())
            content = meta["content"]
            intact = meta["sha256"] == _digest(content)
            files = dict(content["files"])
        except (*MISSING, ValueError, KeyError, TypeError) as error:
            raise DamagedArtifactError(f"damaged file {folder / META}: {error}") from error
        if not intact:
            raise DamagedArtifactError(f"damaged file {folder / META}: its checksum does not match")
        tensors = {}
        for file, checksum in files.items():
            path = folder / file
            if path.parent != folder:
                raise DamagedArtifactError(f"damaged file {folder / META}: it names a file elsewhere: {file}")
            if not path.is_file():
                raise DamagedArtifactError(f"missing file {path}")
            try:
                intact = _sha256(path) == checksum
                if intact:
                    tensors[path.stem] = load_file(path)
            except MISSING as error:
                raise DamagedArtifactError(f"damaged file {path}: {error}") from error
            if not intact:
                raise DamagedArtifactError(f"damaged file {path}: its checksum does not match")
        return Artifact(tensors, content["facts"])

    def load_or_discard(self, name: str) -> Artifact | None:
        """Like `load`, but a damaged artifact is named in the log and removed, so that it can be rebuilt.

        Call it under the lock: another process may be rebuilding what this one found damaged.
        """
        try:
            return self.load(name)
        except DamagedArtifactError as error:
            log.warning("%s; it will be rebuilt", error)
            with self._available("written"):
                self._put_away(name)
            return None

    @contextmanager
    def _available(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailableError:
            raise
        except OSError as error:
            raise StoreUnavailableError(f"store {self.where} cannot be {what}: {error.strerror or error}") from error


def _names_in(folder: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        return {item.name for item in found}
    return set()


def _write(folder: Path, artifact: Artifact) -> None:
    """The artifact's files, on the disk when it returns; the one with their checksums last.

    On a share, a quota that is exceeded may show only when a file is flushed: its bytes are then read back from memory,
    and match a checksum that the file on the server does not have.
    """
    checksums = {}
    for group, tensors in artifact.tensors.items():
        file = folder / f"{group}.safetensors"
        save_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file)
        _flush(file)
        checksums[file.name] = _sha256(file)
    content = {"files": checksums, "facts": artifact.facts}
    meta = {"content": content, "sha256": _digest(content)}
    (folder / META).write_text(json.dumps(meta, indent=1, sort_keys=True, allow_nan=False) + "\n")
    _flush(folder / META)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
