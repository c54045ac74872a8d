"""A study's folder at a URI: a driver works on a local copy of it, made anew at each start, and ships what it appends.

Nothing but the URI is needed to continue a study, on any machine. One driver at a time: `trainables.storage.lease`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from study.record.curves import CURVES_FOLDER
from study.record.detectors import DETECTORS_FILE
from study.record.ended import ENDED_FILE
from study.record.folder import LEDGER_FILE, SPEC_FILE, Folder, check_folder, driving
from study.record.now import NOW_FILE
from study.record.object_log import SegmentLog
from study.record.optuna_storage import JOURNAL_FILE
from study.record.shipping import Mirror
from study.record.stopped import StudyStoppedError
from study.record.temporary import scratch_folder
from study.record.victims import VICTIMS_FILE
from study.spec.schema import StudySpec
from study.spec.yaml_io import SpecError
from trainables.storage.lease import Lease, LeaseTakenError
from trainables.storage.remote import Place, Remote, RemoteError

log = logging.getLogger("superft.folder")

LOGS = (LEDGER_FILE, JOURNAL_FILE)
DRIVER = ".driver"


@contextmanager
def open_folder(place: Place) -> Iterator[Folder | RemoteFolder]:
    """The study's folder; of one at a URI a copy is kept on this machine for the time of the block, and still empty."""
    if not isinstance(place, str):
        yield Folder(place)
        return
    with scratch_folder() as scratch:
        path = scratch / (place.rpartition("/")[2] or "study")
        path.mkdir()
        yield RemoteFolder(place, path)


class RemoteFolder:
    """The study at ``uri``, and ``path``, where a copy of it lies.

    Args:
        uri: of the study.
        path: an empty folder of this machine.
    """

    def __init__(self, uri: str, path: Path) -> None:
        self.called, self.path = uri, path
        self.remote = Remote(uri)
        self._mirror: Mirror | None = None
        self._shipped: dict[str, tuple[int, int]] = {}

    def check(self, spec: StudySpec) -> None:
        """As `check_folder`; also refuses a URI that cannot be read (SpecError)."""
        names = self._names("--out ")
        if names and SPEC_FILE not in names:
            raise SpecError(f"--out {self.called} is not empty and holds no {SPEC_FILE}; name a new folder")
        if names:
            self.remote.download(SPEC_FILE, self.path / SPEC_FILE)
            check_folder(self.path, spec, called=self.called)
        self._has_rows = any(name.startswith((LEDGER_FILE, VICTIMS_FILE)) for name in names)

    @property
    def is_new(self) -> bool:
        """Whether nothing of this study was ever recorded; ask after `check`."""
        return not self._has_rows

    def fetch(self, *, rows_only: bool = False, curves: bool = False) -> None:
        """Copy the study here, or only its ledger and what tells of it (SpecError where there is none).

        Args:
            rows_only: leave out all else.
            curves: but not the curves along the repairs.
        """
        if SPEC_FILE not in (names := self._names()):
            raise SpecError(f"{self.called} is no study folder: it has no {SPEC_FILE}")
        if rows_only:
            for name in {SPEC_FILE, VICTIMS_FILE, DETECTORS_FILE, ENDED_FILE, NOW_FILE}.intersection(names):
                self.remote.download(name, self.path / name)
            for name in [name for name in names if curves and name.startswith(f"{CURVES_FOLDER}/")]:
                (self.path / CURVES_FOLDER).mkdir(exist_ok=True)
                self.remote.download(name, self.path / name)
            (self.path / LEDGER_FILE).write_bytes(SegmentLog(self.remote, LEDGER_FILE, salvage=True).read())
        else:
            self._copy(Mirror(self.path, self.remote, lambda: None, log.warning))

    @contextmanager
    def driving(self, spec: StudySpec, report: Callable[[str], None]) -> Iterator[None]:
        """Own the study while it runs: fetch it, write its spec, ship what is appended; publish it in the end.

        Args:
            report: called once, from another thread, with one line when the study can no longer be written, or belongs
                to somebody else.

        Raises:
            SpecError: another process runs this study, or the URI cannot be written.
            StudyStoppedError: at the end, where not all could be shipped.
        """
        lease = self._lease = Lease(self.remote, DRIVER, on_lost=report)
        try:
            lease.acquire()
        except LeaseTakenError as error:
            raise SpecError(
                f"another process runs the study in {self.called} ({error}); wait or name another --out"
            ) from None
        except RemoteError as error:
            raise SpecError(f"cannot write to --out {self.called}: {error}") from error
        try:
            self._mirror = Mirror(self.path, self.remote, lease.check, report)
            try:
                self._copy(self._mirror)
                with driving(self.path, spec):
                    self._upload(SPEC_FILE)
            except RemoteError as error:
                raise SpecError(f"cannot write to --out {self.called}: {error}") from error
            self._mirror.start()
            try:
                yield
                self.publish()
            finally:
                with _shipping(self.called):
                    self._mirror.close()
        finally:
            lease.release()

    def keep(self, name: str) -> None:
        """Put one file, before everything is published (RemoteError)."""
        self._upload(name)

    def publish(self) -> None:
        """Put everything but the two logs that changed since it was fetched (report, figures, tables)."""
        with _shipping(self.called):
            if self._mirror is not None:  # first: a report that is older than the ledger is written again
                self._mirror.flush(tidy=True)
            for name in self._files():
                self._upload(name)
            gone = [name for name in self._shipped if not (self.path / name).exists()]
            self.remote.delete(gone)
            for name in gone:
                del self._shipped[name]

    def _names(self, option: str = "") -> list[str]:
        try:
            # Hidden ones may be all that a driver killed at its very start left.
            return [name for name in self.remote.sizes() if not name.startswith(".")]
        except RemoteError as error:
            raise SpecError(f"{option}{error}") from error

    def _copy(self, mirror: Mirror) -> None:
        mirror.fetch()
        for name in LOGS:
            if (self.path / name).exists():
                self._date(name, SegmentLog(self.remote, name, salvage=False).newest())
        for name in self._names():
            if not name.startswith(LOGS) or name.endswith((".damaged", ".retried")):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                if self.remote.download(name, self.path / name):
                    self._date(name, name)
                    self._shipped[name] = self._state(name)

    def _date(self, name: str, there: str) -> None:
        """Give the copy the time of the original: which of report and ledger is newer matters."""
        if (when := self.remote.modified(there)) is not None:
            os.utime(self.path / name, (when.timestamp(), when.timestamp()))

    def _files(self) -> list[str]:
        found = (str(path.relative_to(self.path)) for path in sorted(self.path.rglob("*")) if path.is_file())
        mirrored = (*LOGS, f"{JOURNAL_FILE}.lock")
        return [name for name in found if name not in mirrored and not name.startswith(".")]

    def _upload(self, name: str) -> None:
        if self._shipped.get(name) != self._state(name):
            self.remote.upload(self.path / name, name)
            self._shipped[name] = self._state(name)

    def _state(self, name: str) -> tuple[int, int]:
        state = (self.path / name).stat()
        return state.st_mtime_ns, state.st_size


@contextmanager
def _shipping(called: str) -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        raise StudyStoppedError(f"the study in {called} cannot be written: {error}") from error
