"""Where Optuna keeps a study: the journal file in the study's folder, or a database behind a URL."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileSymlinkLock

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
        safe, secret = without_password(storage)
        text = first.replace(secret, "***") if secret else first
        raise SpecError(f"search.storage: cannot open {safe}: {text}") from error


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
            for line in content[: content.rfind(b"\n") + 1].splitlines():
                json.loads(line)
            return JournalStorage(Journal(path))
        except (ValueError, KeyError, TypeError) as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            log.warning("damaged %s (%s): kept aside as %s, rebuilt from the ledger", path, error, aside.name)
    return JournalStorage(Journal(path))


class Journal(BaseJournalBackend):
    """Optuna's journal file without a wait for the disk at every entry, of which a trial makes ten.

    Entries outlive a killed driver. What a power failure takes is rebuilt from the ledger, which waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, JournalFileBackend(str(path))
        self._lock = JournalFileSymlinkLock(str(path))  # against other writers, such as optuna-dashboard

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._lock.acquire()
        try:
            with self._path.open("ab", buffering=0) as file:
                append_whole(file.fileno(), lines.encode(), self._path, wait=False)
        finally:
            self._lock.release()
