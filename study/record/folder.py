"""A study's folder: one spec, one driver at a time."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from study.record.files import write_atomically
from study.spec.load import make_spec
from study.spec.plugins import changed_plugins
from study.spec.schema import StudySpec, differences
from study.spec.yaml_io import SpecError, read_yaml_mapping
from trainables.storage.lease import Lease, LeaseTakenError
from trainables.storage.mounted import Mounted, has_locks
from trainables.storage.store import Store, StoreUnavailableError

log = logging.getLogger("superft.folder")

SPEC_FILE = "study.yaml"
LEDGER_FILE = "trials.jsonl"
REPORT_FILE = "report.html"


class Folder:
    """A study's folder at a path; `remote_folder` has the same for a URI.

    Args:
        path: where the driver works, and what people call it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.called = path, str(path)

    def check(self, spec: StudySpec) -> None:
        """See `check_folder`."""
        check_folder(self.path, spec)

    @property
    def is_new(self) -> bool:
        """Whether no trial of this study was ever recorded."""
        return not (self.path / LEDGER_FILE).exists()

    def fetch(self, *, rows_only: bool = False, curves: bool = False) -> None:
        """Nothing: it is here."""

    def driving(self, spec: StudySpec, report: Callable[[str], None]) -> AbstractContextManager[None]:
        """See `driving`."""
        return driving(self.path, spec, report)

    def keep(self, name: str) -> None:
        """Nothing: what was written is where it belongs."""

    def publish(self) -> None:
        """Nothing, likewise."""


def check_folder(directory: Path, spec: StudySpec, *, called: str | None = None) -> None:
    """Refuse a folder that holds something else, before anything is written.

    Args:
        called: what people call it, where that is not its path.

    Raises:
        SpecError: a study made by another spec (the differing keys are named), a file, or a folder of other things.
    """
    shown = called or str(directory)
    refuse_uri(str(directory), f"--out {shown}")
    if directory.exists() and not directory.is_dir():
        raise SpecError(f"--out {shown} is a file; name a folder")
    # Hidden files may be all that a driver killed at its very start left: its lock, half a spec.
    if not directory.exists() or all(item.name.startswith(".") for item in directory.iterdir()):
        return
    if not (directory / SPEC_FILE).is_file():
        raise SpecError(f"--out {shown} is not empty and holds no {SPEC_FILE}; name a new folder")
    for line in changed_plugins(read_yaml_mapping(directory / SPEC_FILE), spec.plugins):
        log.warning("%s", line)
    changed = differences(stored_spec(directory), spec)
    if changed:
        raise SpecError(
            f"{shown} holds a study made by another spec ({'; '.join(changed[:3])}"
            f"{f'; and {len(changed) - 3} more' if len(changed) > 3 else ''}); name another --out"
        )


def refuse_uri(text: str, what: str) -> None:
    """Refuse ``s3://bucket/x`` (or what a Path makes of it), which would become a folder called ``s3:`` (SpecError)."""
    if re.search(r"(^|/)[a-z][a-z0-9+.-]+:/", text):
        raise SpecError(f"{what}: a URI is not a folder; mount the bucket, and name a path in it")


def check_store(store: Store) -> None:
    """Refuse a store that victims cannot be written to: no trial could run (SpecError)."""
    if isinstance(store.where, Path):
        refuse_uri(str(store.where), f"--store {store.where}")
    try:
        store.check()
    except StoreUnavailableError as error:
        cause = error.__cause__
        raise SpecError(
            f"--store {store.where}: cannot be written ({getattr(cause, 'strerror', None) or cause}); "
            "name another, or set SUPERFT_STORE"
        ) from error


def stored_spec(directory: Path) -> StudySpec:
    """The spec in a study's folder (SpecError if it is none)."""
    path = directory / SPEC_FILE
    if not path.is_file():
        raise SpecError(f"{directory} is no study folder: it has no {SPEC_FILE}")
    return spec_of_stranger(read_yaml_mapping(path), path)


def spec_of_stranger(settings: Mapping[str, Any], file: Path) -> StudySpec:
    """The spec of a mapping that lay in a file, which may come from anybody (SpecError if it is none)."""
    plugins = settings.get("plugins")
    if isinstance(plugins, list):
        settings = {**settings, "plugins": [_stored_plugin(file, item) for item in plugins]}
    return make_spec(settings)


def _stored_plugin(file: Path, item: Any) -> Any:
    """What a spec in a file says of a plug-in, where it may be followed.

    A study's folder may come from a stranger: looking at it must not run code that came with it.

    Raises:
        SpecError: it names a file in the folder, or one by a path that depends on where the command is started.
    """
    is_file = isinstance(item, str) and (item.endswith(".py") or "/" in item)
    given = item if is_file else item.get("path") if isinstance(item, Mapping) else None
    if isinstance(given, str) and not _is_the_users(Path(given), file.parent):
        raise SpecError(
            f"{file} names the plug-in {given}, which is not loaded from a study's folder, by a "
            "relative path, by one that the system makes up (/proc), or from another user's file; copy it elsewhere, "
            "and name it there if you trust it"
        )
    # As a mapping it is looked for among installed modules, and not in the working folder.
    return {"module": item} if isinstance(item, str) and not is_file else item


def _is_the_users(plugin: Path, folder: Path) -> bool:
    """Whether a file that a stored spec names is the user's own (or the administrator's), wherever one stands.

    ``/proc/self/cwd/evil.py`` is absolute and yet beside the folder that a stranger has packed.
    """
    if not plugin.is_absolute():
        return False
    for path in (plugin, plugin.resolve()):
        if path.is_relative_to(folder.resolve()) or path.parts[1:2] in (("proc",), ("sys",), ("dev",)):
            return False
    try:
        owner = plugin.stat().st_uid
    except OSError:
        return True  # that it is not there is said where it is loaded
    return owner in (os.getuid(), 0)


@contextmanager
def driving(directory: Path, spec: StudySpec, report: Callable[[str], None] | None = None) -> Iterator[None]:
    """Own the folder while the study runs; writes the spec.

    Args:
        report: on a share without locks, called from another thread with one line when somebody else owns it now.

    Raises:
        SpecError: another process runs this study, or the folder cannot be written.
    """
    lock: FileLock | Lease
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if has_locks(directory):
            lock = FileLock(directory / ".lock")
            lock.acquire(timeout=0)
        else:
            lock = Lease(Mounted(directory), ".driver", on_lost=report)
            lock.acquire()
    except (Timeout, LeaseTakenError) as error:
        who = f" ({error})" if isinstance(error, LeaseTakenError) else ""
        raise SpecError(f"another process runs the study in {directory}{who}; wait or name another --out") from None
    except OSError as error:
        raise SpecError(f"cannot write to --out {directory}: {error.strerror or error}") from error
    try:
        content = spec.to_yaml().encode()
        if not (directory / SPEC_FILE).is_file() or (directory / SPEC_FILE).read_bytes() != content:
            write_atomically(directory / SPEC_FILE, content)
        yield
    finally:
        lock.release()
