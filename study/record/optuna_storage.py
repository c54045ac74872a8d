"""Where Optuna keeps a study: the journal file in the study's folder, or a database behind a URL."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from study.record.behind import Behind
from study.record.files import append_whole
from study.spec.yaml_io import SpecError, without_password

log = logging.getLogger("superft.search")

JOURNAL_FILE = "optuna.journal"


def open_storage(storage: str, directory: Path) -> BaseStorage:
    """The journal file in ``directory``, or the database behind a URL.

    Call it as the only driver of ``directory``: what a killed one left in the journal is cleared away.

    Raises:
        SpecError: the database cannot be reached.
    """
    if storage == "journal":
        return _open_journal(directory.resolve() / JOURNAL_FILE)
    try:
        return RDBStorage(storage)
    except Exception as error:  # whatever the database's driver raises, it means the same here
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        safe, secrets = without_password(storage)
        for secret in secrets:
            first = first.replace(secret, "***")
        raise SpecError(f"search.storage: cannot open {safe}: {first}") from error


def _open_journal(path: Path) -> BaseStorage:
    """The journal; a lock and half a line that a killed driver left are removed, a damaged file is put aside.

    Optuna would wait 30 s for the lock, glue the next entry to the half line, and then read neither.
    """
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("rb+") as file:
                file.truncate(content.rfind(b"\n") + 1)
        try:
            return JournalStorage(Journal(path))
        except (ValueError, KeyError, TypeError) as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            log.warning("damaged %s (%s): kept aside as %s, rebuilt from the ledger", path, error, aside.name)
    return JournalStorage(Journal(path))


@contextmanager
def written_behind(database: BaseStorage) -> Iterator[Behind]:
    """A database that is read once and written by threads; at the end of the block all is written.

    Raises:
        StorageInternalError: the database failed.
    """
    one_writer = isinstance(database, RDBStorage) and database.engine.dialect.name == "sqlite"
    storage = Behind(database, *([1] if one_writer else []))
    try:
        yield storage
    finally:
        storage.close()


class Journal(BaseJournalBackend):
    """Optuna's journal file without a wait for the disk at every entry, of which a trial makes more than ten.

    Entries outlive a killed driver. What a power failure takes is rebuilt from the ledger, which waits for the disk.
    What was read once is not read again, and what this process writes is not read at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalFileSymlinkLock(str(path))  # against other writers, such as optuna-dashboard
        path.open("ab").close()  # looking at a finished study changes nothing, not even a file's time
        self._begin()
        self._held: list[bytes] | None = None
        self._unwritten = b""  # of blocks whose end met a full disk: without it, later entries would mean nothing

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Entries from that number on; ValueError where the file is damaged."""
        if log_number_from < self._first:  # the storage was pickled and begins anew
            self._begin()
        self._read()
        while self._entries and self._first < log_number_from:
            self._entries.popleft()
            self._first += 1
        return list(self._entries)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write them, unless `together` puts that off."""
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        if self._held is None:
            self._write(b"".join(lines))
        else:
            self._held += lines
        self._entries.extend(map(json.loads, lines))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write all entries of the block at its end, in one piece: one wait for the lock, and all of them or none."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            self._unwritten += b"".join(self._held)
            self._held = None
            if self._unwritten:
                self._write(b"")

    def _begin(self) -> None:
        self._offset = self._first = 0  # bytes that were read; number of the first entry that is kept
        self._entries: deque[dict[str, Any]] = deque()

    def _write(self, lines: bytes) -> None:
        lines = self._unwritten + lines
        self._lock.acquire()
        try:
            self._read()
            with self._path.open("ab", buffering=0) as file:
                append_whole(file.fileno(), lines, self._path, wait=False)
        finally:
            self._lock.release()
        self._unwritten = b""
        self._offset += len(lines)

    def _read(self) -> None:
        """What others wrote since; a line that one of them is just writing is left for later."""
        if self._path.stat().st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        # All lines at once, which is several times as fast as one by one.
        self._entries.extend(json.loads(b"[" + whole.removesuffix(b"\n").replace(b"\n", b",") + b"]"))
        self._offset += len(whole)


@contextmanager
def together(storage: BaseStorage) -> Iterator[None]:
    """What the block changes is written in one piece where the storage can do that, and write by write elsewhere."""
    writer = storage if isinstance(storage, Behind) else getattr(storage, "_backend", None)
    with writer.together() if isinstance(writer, Behind | Journal) else nullcontext():
        yield
