"""Ships what is appended to a study's ledger and journal, which lie in a local folder, to the study's URI."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from study.record.folder import LEDGER_FILE
from study.record.object_log import SegmentLog
from study.record.optuna_storage import JOURNAL_FILE
from trainables.storage.remote import Remote

# Seconds between looks at the files: what was appended meanwhile goes as one object, so that the number of objects
# does not grow with the number of slots. A driver that is killed loses what it appended since: those trials run again.
FLUSH_SECONDS = 1.0
# Storage that fails this long ends the study; what the driver does not get rid of is lost if it is killed.
PATIENCE_SECONDS = 300.0


class Mirror:
    """The two append-only files of the study in ``folder``, and their objects at ``remote``.

    The ledger goes first, with at least all rows whose end the shipped part of the journal tells: the ledger is the
    truth, and a journal that lags behind is brought up to it on opening, as after any crash.

    Args:
        guard: raises RemoteError where the study is not ours any more.
        report: called once, from another thread, with one line when the storage failed for `PATIENCE_SECONDS`.
    """

    def __init__(self, folder: Path, remote: Remote, guard: Callable[[], None], report: Callable[[str], None]) -> None:
        self._guard, self._report = guard, report
        self._ledger = _Tail(folder / LEDGER_FILE, SegmentLog(remote, LEDGER_FILE, salvage=True))
        self._journal = _Tail(folder / JOURNAL_FILE, SegmentLog(remote, JOURNAL_FILE, salvage=False))
        self._busy, self._end = threading.Lock(), threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def fetch(self) -> None:
        """Write both files into the folder, as they are at the URI (RemoteError)."""
        self._ledger.fetch()
        self._journal.fetch()

    def start(self) -> None:
        """Begin to ship."""
        self._thread.start()

    def flush(self, *, tidy: bool = False) -> None:
        """Ship what there is, now.

        Args:
            tidy: put each file as one plain object, for people and for other tools.

        Raises:
            RemoteError: not all of it could be shipped.
        """
        with self._busy:
            self._guard()
            told = self._journal.size()
            self._ledger.ship(self._ledger.size(), tidy)
            self._journal.ship(told, tidy)

    def close(self) -> None:
        """Ship the rest and stop (RemoteError, unless one was reported already)."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._failed:
            self.flush()

    def _run(self) -> None:
        worked = time.monotonic()
        while not self._end.wait(FLUSH_SECONDS):
            try:
                self.flush()
                worked = time.monotonic()
            except OSError as error:
                if time.monotonic() - worked > PATIENCE_SECONDS:
                    self._failed = True
                    self._report(str(error))
                    return


class _Tail:
    """One local file and how much of it was shipped."""

    def __init__(self, path: Path, log: SegmentLog) -> None:
        self.path, self.log = path, log
        self._inode: int | None = None

    def fetch(self) -> None:
        if content := self.log.read():
            self.path.write_bytes(content)
            self._inode = self.path.stat().st_ino
            # Half a line, from storage that does not put whole objects: it will be cut off here.
            self.log.sound &= content.endswith(b"\n")

    def size(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_size
        return 0

    def ship(self, size: int, tidy: bool) -> None:
        """The whole lines among the first ``size`` bytes, as far as they are not there yet."""
        if size == 0 or not self.path.exists():  # a damaged journal was put aside just now
            return
        with self.path.open("rb") as file:
            state = os.fstat(file.fileno())
            # A file that was repaired on opening is another file.
            anew = not self.log.sound or self._inode not in (None, state.st_ino) or state.st_size < self.log.length
            file.seek(0 if anew else self.log.length)
            content = file.read(state.st_size if anew else max(0, size - self.log.length))
            content = content[: content.rfind(b"\n") + 1]
            if anew:
                self.log.rewrite(content)
            elif content:
                self.log.append(content)
            self._inode = state.st_ino
            if self.log.crowded or (tidy and self.log.segments):
                file.seek(0)
                self.log.rewrite(file.read(self.log.length))
