"""A store behind a URI: artifacts lie there, each node works on verified copies in its own cache folder.

The layout there is that of a store in a folder, so one can be copied to the other. Files go up first and the one with
their checksums last, so an upload that was cut off is no artifact. Which artifact counts, where two nodes should ever
have made two, is decided by that file there: a copy whose own differs is fetched again. A claim (`lease`) lets one
process in the whole cluster train a victim while the others wait; what is derived from victims can be computed again
anywhere, and stays on the node.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

from trainables.storage.files import cache_folder
from trainables.storage.lease import Lease
from trainables.storage.remote import Place, Remote, as_place
from trainables.storage.store import META, Artifact, DamagedArtifactError, Store, default_store, log


def open_store(place: Place | None = None) -> Store:
    """The store in a folder or behind a URI; None: the default one."""
    place = default_store() if place is None else as_place(place)
    if isinstance(place, str):
        # One folder per URI: two stores hold different artifacts under one name where their trainings differed.
        key = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        return RemoteStore(cache_folder("SUPERFT_CACHE", "remote") / key, place)
    return Store(place.expanduser().resolve())


@dataclass(frozen=True)
class RemoteStore(Store):
    """Artifacts behind ``uri``; ``root`` is this node's cache of them, which may be deleted at any time."""

    uri: str

    @property
    def where(self) -> Place:
        """URI of the store."""
        return self.uri

    @cached_property
    def remote(self) -> Remote:
        """The storage at that URI."""
        return Remote(self.uri)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Held by one process of all nodes at a time."""
        with super().lock(name), ExitStack() as stack:
            with self._available("locked"):
                stack.enter_context(Lease(self.remote, f".locks/{name}").waiting())
            yield

    def check(self) -> None:
        super().check()
        with self._available("written"):
            self.remote.check()

    def holds(self, name: str) -> bool:
        with self._available("read"):
            return self.remote.read(f"{name}/{META}") is not None

    def save(self, name: str, artifact: Artifact) -> None:
        super().save(name, artifact)
        self._publish(name)

    def load(self, name: str) -> Artifact | None:
        with self._available("read"):
            meta = self.remote.read(f"{name}/{META}")
            if meta is None:
                return None
            with super().lock(f"{name}.fetch"):
                if self._is_copy(name, meta):
                    try:
                        return self._load(name)
                    except DamagedArtifactError as error:
                        log.warning("%s; it will be fetched again from %s", error, self.uri)
                self._fetch(name)
                try:
                    return self._load(name)
                except DamagedArtifactError as error:  # there as here, then
                    raise DamagedArtifactError(str(error).replace(str(self.root), self.uri)) from error

    def load_or_discard(self, name: str) -> Artifact | None:
        """Like `load`; what is damaged is removed there, and what is there no more is put back from a whole copy here.

        Call it under the lock.
        """
        try:
            found = self.load(name)
        except DamagedArtifactError as error:
            log.warning("%s; it will be rebuilt", error)
            with self._available("written"):
                self.remote.delete([f"{name}/{META}"])
                self.remote.delete(list(self.remote.sizes(name)))
                shutil.rmtree(self.path(name), ignore_errors=True)
            return None
        if found is None and super().holds(name):
            with suppress(DamagedArtifactError):
                found = self._load(name)
                self._publish(name)
        return found

    def _is_copy(self, name: str, meta: bytes) -> bool:
        try:
            return (self.path(name) / META).read_bytes() == meta
        except FileNotFoundError:
            return False

    def _publish(self, name: str) -> None:
        with self._available("written"):
            files = sorted(path for path in self.path(name).iterdir() if path.name != META)
            for path in [*files, self.path(name) / META]:
                self.remote.upload(path, f"{name}/{path.name}")

    def _fetch(self, name: str) -> None:
        """The artifact's files, aside and then renamed into place."""
        self.root.mkdir(parents=True, exist_ok=True)
        for stale in self.root.glob(f".{name}.fetch-*.part"):
            shutil.rmtree(stale)
        temporary = self.root / f".{name}.fetch-{os.getpid()}.part"
        temporary.mkdir()
        try:
            for file in self.remote.sizes(name):
                if file.count("/") == 1 and not file.startswith("."):  # what a stranger put deeper is no part of it
                    self.remote.download(file, temporary / file.rpartition("/")[2])
            shutil.rmtree(self.path(name), ignore_errors=True)
            temporary.rename(self.path(name))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
