"""A study's folder, with its report, brought to this machine: from a bucket, or from a machine that ssh reaches.

It comes into a folder beside its place and is renamed when all of it is there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from study.record.folder import LEDGER_FILE, REPORT_FILE, SPEC_FILE, stored_spec
from study.record.ledger import Ledger
from study.record.remote_folder import RemoteFolder
from study.spec.yaml_io import SpecError
from trainables.storage.messages import one_line
from trainables.storage.remote import RemoteError, is_uri

ON_HOST = re.compile(r"([^-/:\s][^/:\s]*):(\S.*)")  # HOST:DIR as rsync and scp read it
NO_SUCH_FILE = "No such file"


@dataclass(frozen=True)
class Pulled:
    """What came.

    Args:
        name: of the study.
        folder: here.
        rows: in its ledger.
        report: whether it has one.
        anew: whether an older copy was there.
    """

    name: str
    folder: Path
    rows: int
    report: bool
    anew: bool

    def text(self) -> str:
        """In words."""
        what = f"{self.name}: {self.rows} rows in {self.folder}{', over the copy that was there' if self.anew else ''}"
        last = f"report: {self.folder / REPORT_FILE}" if self.report else f"no report yet: superft report {self.folder}"
        return f"{what}\n{last}"


def pull(place: str, folder: Path | None) -> Pulled:
    """Bring the study at ``place`` here.

    Args:
        place: a URI (``s3://bucket/study``), or ``HOST:DIR``.
        folder: where it goes; None: the last part of ``place``, in the working folder. An older copy of the same study
            is replaced; anything else that is there is refused.

    Raises:
        SpecError: there is no study, or ``folder`` holds something else.
        RemoteError: the storage or the machine cannot be reached.
    """
    on_host = None if is_uri(place) else ON_HOST.fullmatch(place)
    if on_host is None and (not is_uri(place) or place.startswith("file://")):
        raise SpecError(f"{place} is no place elsewhere; give a URI (s3://bucket/study) or HOST:DIR")
    name = (on_host[2] if on_host is not None else place).rstrip("/").rpartition("/")[2]
    target = folder or Path(name)
    if target.exists() and not (target / SPEC_FILE).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise SpecError(f"{target} is there already and is no study's folder; name another")
    with _beside(target) as aside:
        if on_host is None:
            RemoteFolder(place, aside).fetch()
        else:
            _copy(on_host[1], on_host[2].rstrip("/"), aside, place)
        spec = stored_spec(aside)
        rows = len(Ledger.read(aside / LEDGER_FILE))
        anew = _replace(target, aside, spec.name, place)
    return Pulled(spec.name, target, rows, (target / REPORT_FILE).is_file(), anew)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target``; what is left of it in the end is removed."""
    aside = target.absolute().with_name(f".{target.absolute().name}.pull-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise SpecError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(target: Path, aside: Path, name: str, place: str) -> bool:
    """Put what came in its place; whether a copy was there (SpecError: it is of another study, or runs here)."""
    if not (target / SPEC_FILE).is_file():
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        aside.rename(target)
        return False
    if (other := stored_spec(target).name) != name:
        raise SpecError(f"{target} holds the study {other}, and {place} is {name}; name another folder")
    try:
        lock = FileLock(target / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise SpecError(f"{target} is a study that runs here; name another folder") from None
    here, there = len(Ledger.read(target / LEDGER_FILE)), len(Ledger.read(aside / LEDGER_FILE))
    lock.release()
    if there < here:
        raise SpecError(f"{target} has {here} rows, and {place} only {there}; name another folder, or remove this one")
    old = aside.with_name(f"{aside.name}.old")
    target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return True


def _copy(host: str, folder: str, aside: Path, place: str) -> None:
    """The files of a folder of another machine, by rsync where it is installed, else by scp; hidden ones stay there."""
    tool = shutil.which("rsync") or shutil.which("scp")
    if tool is None:
        raise SpecError(f"{place}: neither rsync nor scp is installed here")
    first = f"{host}:{folder}/{SPEC_FILE}"
    if tool.endswith("rsync"):
        _run([tool, "-tp", "--protect-args", "--", first, str(aside)], place)
        _run([tool, "-rtp", "--protect-args", "--exclude=.*", "--", f"{host}:{folder}/", str(aside)], place)
        return
    _run([tool, "-q", "-B", "-p", "--", first, str(aside)], place)
    _run([tool, "-q", "-B", "-rp", "--", f"{host}:{folder}/.", str(aside)], place)
    for hidden in aside.glob(".*"):
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()


def _run(command: list[str], place: str) -> None:
    # Nobody is asked for a password in the middle: it would wait for ever in a script.
    environment = {**os.environ, "RSYNC_RSH": os.environ.get("RSYNC_RSH", "ssh -o BatchMode=yes"), "LC_ALL": "C"}
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if ended.returncode == 0:
        return
    if NO_SUCH_FILE in ended.stderr and SPEC_FILE in ended.stderr:
        raise SpecError(f"{place} is no study folder: it has no {SPEC_FILE}")
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    why = one_line(said[0]) if said else f"exit code {ended.returncode}"
    raise RemoteError(f"{place}: {why} ({Path(command[0]).name})")
