"""Where Optuna keeps a study: the journal file in the study's folder, or a database behind a URL."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from study.settings import SpecError, without_password

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
            return JournalStorage(JournalFileBackend(str(path)))
        except (ValueError, KeyError, TypeError) as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            log.warning("damaged %s (%s): kept aside as %s, rebuilt from the ledger", path, error, aside.name)
    return JournalStorage(JournalFileBackend(str(path)))
