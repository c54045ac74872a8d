"""Work that several trials share (features, retrained models): done once per content key, kept here and on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from trainables.storage.store import Artifact, DamagedArtifactError, Store

log = logging.getLogger("superft.memo")


class Memo:
    """Artifacts under their keys: the last few in this process, all of them in a store that processes share.

    What is kept can be computed again at any time, so its folder may be deleted to free space.

    Args:
        store: where they lie; None: in this process only.
        keep: how many stay in memory; the oldest goes first.
    """

    def __init__(self, store: Store | None = None, keep: int = 8) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.store, self.keep = store, keep
        self._kept: dict[str, Artifact] = {}

    def obtain(self, name: str, build: Callable[[], Artifact]) -> tuple[Artifact, bool]:
        """The artifact ``name``, and whether ``build`` had to make it; concurrent callers build it once.

        What ``build`` raises is raised here, and nothing is kept.
        """
        if name in self._kept:
            return self._kept[name], False
        if self.store is None:
            return self._keep(name, build()), True
        with suppress(DamagedArtifactError):  # dealt with under the lock, where nobody else is rebuilding it
            if (found := self.store.load(name)) is not None:
                return self._keep(name, found), False
        with self.store.lock(name):
            if (found := self.store.load_or_discard(name)) is not None:
                return self._keep(name, found), False
            built = build()
            self.store.save(name, built)
        log.info("kept %s", name)
        return self._keep(name, built), True

    def _keep(self, name: str, artifact: Artifact) -> Artifact:
        while len(self._kept) >= self.keep:
            self._kept.pop(next(iter(self._kept)))
        self._kept[name] = artifact
        return artifact
