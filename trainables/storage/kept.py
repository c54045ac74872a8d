"""Repaired models that a study keeps: one safetensors file for each trial, in the folder ``kept`` of its store.

They are no artifacts of `store`: a file is of one study alone, which names it and may remove it again, and its hash
stands in the trial's row. So nothing is locked, and a file that a killed process left is written once more by the trial
when it runs again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainables.storage.files import save_tensors
from trainables.storage.messages import one_line
from trainables.storage.remote import Place, Remote
from trainables.storage.store import MISSING, Store, StoreUnavailableError

FOLDER, ENDING = "kept", ".safetensors"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = re.compile(rf"{FOLDER}/{_PART}/{_PART}{re.escape(ENDING)}")


def kept_name(study: str, trial: str) -> str:
    """Name within a store of the file of a trial; ``study`` and ``trial`` must be fit for file names.

    Raises:
        ValueError: they are not.
    """
    name = f"{FOLDER}/{study}/{trial}{ENDING}"
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a kept model")
    return name


@dataclass(frozen=True)
class KeptModels:
    """The kept models of a store, whichever study's they are; it may lie behind a URI."""

    store: Store

    def save(self, name: str, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
        """Write a state dict whole or not at all; the SHA-256 of its file.

        Args:
            name: see `kept_name`.
            facts: for the header of the file.

        Raises:
            OSError: it could not be written (disk full, storage gone); nothing is left of it.
        """
        if (remote := self._remote) is not None:
            with tempfile.TemporaryDirectory(prefix="superft-kept-") as scratch:
                path = Path(scratch) / "model.safetensors"
                digest = _write(path, state, facts)
                remote.upload(path, name)
            return digest
        path = self.store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in _asides(path):  # of a process that was killed while writing
            stale.unlink(missing_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            digest = _write(aside, state, facts)
            aside.replace(path)
        except BaseException:  # a trial beyond its time limit is stopped by an exception, too
            aside.unlink(missing_ok=True)
            raise
        return digest

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path | None]:
        """The file, on this machine for the time of the block; None where there is none.

        Its content may be anything: whoever reads it holds it against the hash in the row.

        Raises:
            ValueError: no name of a kept model; a ledger may come from anybody.
            StoreUnavailableError: the store cannot be read.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no name of a kept model")
        if (remote := self._remote) is None:
            path = self.store.root / name
            yield path if path.is_file() else None
            return
        with tempfile.TemporaryDirectory(prefix="superft-kept-") as scratch:
            path = Path(scratch) / "model.safetensors"
            try:
                found = remote.download(name, path)
            except OSError as error:
                raise StoreUnavailableError(f"store {self.store.where} cannot be read: {error}") from error
            yield path if found else None

    def discard(self, names: Iterable[str]) -> list[str]:
        """Remove these files and no others; those that were there.

        Raises:
            OSError: one of them cannot be removed.
        """
        wanted = [name for name in names if NAME.fullmatch(name)]
        if (remote := self._remote) is not None:
            there: set[str] = set()
            for folder in {name.rpartition("/")[0] for name in wanted}:
                there |= set(remote.sizes(folder))
            found = [name for name in wanted if name in there]
            remote.delete(found)
            return found
        found = []
        for name in wanted:
            for stale in _asides(self.store.root / name):
                stale.unlink(missing_ok=True)
            with contextlib.suppress(*MISSING):
                (self.store.root / name).unlink()
                found.append(name)
        return found

    @property
    def where(self) -> Place:
        """What people call the store."""
        return self.store.where

    @property
    def _remote(self) -> Remote | None:
        return Remote(self.store.where) if isinstance(self.store.where, str) else None


def keeper(store: Store, name: str, facts: Mapping[str, Any]) -> Callable[[nn.Module], dict[str, Any]]:
    """What `run_trial` is given to keep a trial's model: it writes the file and tells the columns of the row.

    A model that cannot be written costs its trial nothing: the row says why it was not kept.
    """

    def keep(model: nn.Module) -> dict[str, Any]:
        began = time.perf_counter()
        state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
        try:
            digest = KeptModels(store).save(name, state, {key: str(value) for key, value in facts.items()})
            told: dict[str, Any] = {"kept": name, "kept_sha256": digest}
        except OSError as error:
            told = {"not_kept": f"store {store.where}: {one_line(error.strerror or error)}"}
        return {**told, "seconds_keep": time.perf_counter() - began}

    return keep


def _asides(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.*.part"))


def _write(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    save_tensors(state, path, facts)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
