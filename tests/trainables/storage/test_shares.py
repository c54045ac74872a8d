"""Stores and studies on shares as sites have them: without locks, seen late, over quota, and with clocks that differ.

The share is a folder; what its clients do differently from a local disk is put between by the tests.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from study.record.folder import driving
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from trainables.storage import lease as lease_module
from trainables.storage import mounted
from trainables.storage import store as store_module
from trainables.storage.lease import Lease, LeaseTakenError
from trainables.storage.mounted import Mounted, has_locks
from trainables.storage.remote import RemoteError
from trainables.storage.store import Artifact, Store, StoreUnavailableError

ARTIFACT = Artifact({"a": {"x": torch.zeros(3)}, "b": {"x": torch.ones(3)}}, {"asr": 1.0})
OTHER = Artifact({"a": {"x": torch.ones(3)}, "b": {"x": torch.zeros(3)}}, {"asr": 0.0})


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK], ids=errno.errorcode.get)
def without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that was mounted without flock."""

    def refuse(file: Any, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lease_module, "POLL", 0.01)


# --- no locks ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_flock")
def test_a_victim_is_made_by_one_at_a_time_where_the_share_has_no_locks(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with Store(tmp_path).lock("it"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 4
    assert list((tmp_path / ".locks/it").iterdir()) == [], "nothing is left of claims that were given back"


@pytest.mark.usefixtures("without_flock")
def test_a_study_has_one_driver_where_the_share_has_no_locks(tmp_path: Path) -> None:
    spec = tiny_spec()
    with driving(tmp_path / "study", spec), pytest.raises(SpecError, match=r"another process runs .*process \d+ on"):
        driving(tmp_path / "study", spec).__enter__()
    with driving(tmp_path / "study", spec):
        assert (tmp_path / "study/study.yaml").exists()


@pytest.mark.usefixtures("without_flock")
def test_a_killed_holder_is_followed_on_a_share_without_locks(tmp_path: Path) -> None:
    """Killed for real, on this machine; its claim is there and nobody renews it."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from trainables.storage.lease import Lease\n"
        "from trainables.storage.mounted import Mounted\n"
        "Lease(Mounted(Path(sys.argv[1])), '.locks/it').acquire()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=120)
    assert len(list((tmp_path / ".locks/it").iterdir())) == 1
    with Store(tmp_path).lock("it"):
        pass


def test_where_there_are_locks_they_are_used(tmp_path: Path) -> None:
    assert has_locks(tmp_path)
    with Store(tmp_path).lock("it"):
        assert not (tmp_path / ".locks").exists()


def test_other_failures_of_a_lock_are_said_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreUnavailableError, match="cannot be locked: Input/output error"), Store(tmp_path).lock("it"):
        pass


def test_a_claim_is_created_once_and_read_whole(tmp_path: Path) -> None:
    share = Mounted(tmp_path)
    assert share.create("claims/1.json", b"first")
    assert not share.create("claims/1.json", b"second")
    assert share.read("claims/1.json") == b"first"
    share.write("claims/1.json", b"third")
    assert share.read("claims/1.json") == b"third"
    assert list(share.sizes("claims")) == ["claims/1.json"], "and nothing beside it"
    share.delete(["claims/1.json", "claims/2.json"])
    assert share.read("claims/1.json") is None
    assert share.sizes("nowhere") == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(RemoteError, match=r"file/1.json: (File exists|Not a directory)"):
        share.create("file/1.json", b"")


# --- clocks that differ --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-7, 7], ids=["behind", "ahead"])
def test_a_holder_whose_clock_is_minutes_off_keeps_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    share = Mounted(tmp_path)
    holder = Lease(share, "lease", beat=0.05, stale=0.6)
    real = time.time
    monkeypatch.setattr(lease_module.time, "time", lambda: real() + 60 * minutes)
    holder.acquire()
    monkeypatch.setattr(lease_module, "_machine", lambda: "another")
    monkeypatch.setattr(lease_module, "POLL", 0.05)
    with pytest.raises(LeaseTakenError):
        Lease(share, "lease", stale=5.0).acquire()
    assert holder.lost is None
    holder.release()


@pytest.mark.parametrize("minutes", [-7, 7], ids=["behind", "ahead"])
def test_a_silent_holder_is_followed_whatever_its_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    share = Mounted(tmp_path)
    real = time.time
    with monkeypatch.context() as skewed:
        skewed.setattr(lease_module.time, "time", lambda: real() + 60 * minutes)
        Lease(share, "lease", beat=3600).acquire()
    monkeypatch.setattr(lease_module, "_machine", lambda: "another")
    monkeypatch.setattr(lease_module, "POLL", 0.05)
    begin = time.monotonic()
    heir = Lease(share, "lease", stale=0.5)
    heir.acquire()
    assert time.monotonic() - begin >= 0.5
    heir.release()


def test_of_two_that_come_while_a_claim_is_released_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has listed the old claim, the other comes after it was removed: both must begin at the same number."""
    share = Mounted(tmp_path)
    first = Lease(share, "lease")
    first.acquire()
    listed = Lease._claims

    def release_after(self: Lease) -> list[str]:
        found = listed(self)
        if self is second and found and first._thread.is_alive():
            first.release()
        return found

    second, third = Lease(share, "lease"), Lease(share, "lease")
    monkeypatch.setattr(Lease, "_claims", release_after)
    second.acquire()
    with pytest.raises(LeaseTakenError):
        third.acquire()
    assert list(share.sizes("lease")) == ["lease/00000001.json"]
    second.release()


# --- seen late -----------------------------------------------------------------------------------------------------


def test_an_artifact_that_another_node_renamed_into_place_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS that asked before remembers that the name is not there, until it opens the folder."""
    here, there = Store(tmp_path), Store(tmp_path)
    stat, scandir = Path.stat, os.scandir
    forgotten = {tmp_path / "it"}

    def late(self: Path, **options: Any) -> os.stat_result:
        if self in forgotten:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return stat(self, **options)

    def opened(path: Any) -> Any:
        found = scandir(path)
        forgotten.clear()
        return found

    there.save("it", ARTIFACT)
    monkeypatch.setattr(Path, "stat", late)
    monkeypatch.setattr(os, "scandir", opened)
    assert here.holds("it")
    assert not here.holds("other")
    assert not Store(tmp_path / "nowhere").holds("it")


def test_an_artifact_is_replaced_while_a_reader_has_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps a file that is open in its folder, under another name, and the folder cannot be removed."""
    store = Store(tmp_path)
    store.save("it", ARTIFACT)
    rmtree = shutil.rmtree

    def silly(path: Any, ignore_errors: bool = False, **options: Any) -> None:
        if ignore_errors:
            return rmtree(path, ignore_errors=True, **options)
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    monkeypatch.setattr(store_module.shutil, "rmtree", silly)
    store.save("it", OTHER)
    found = store.load("it")
    assert found is not None
    assert found.facts == {"asr": 0.0}


def test_a_reader_finds_the_old_or_the_new_artifact_but_for_a_moment(tmp_path: Path) -> None:
    """Between two renames, and not while megabytes are being deleted."""
    store = Store(tmp_path)
    store.save("it", ARTIFACT)
    seen: list[bool] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(store.path("it").exists())
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", watched)
        store.save("it", OTHER)
    assert seen == [True, False], "away, and at once the new one into its place"


# --- quota ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", range(3), ids=["first file", "second file", "checksums"])
def test_a_quota_that_shows_when_a_file_is_flushed_leaves_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store = Store(tmp_path)
    store.save("it", OTHER)
    flush, calls = os.fsync, list[int]()

    def over(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == at + 1:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", over)
    with pytest.raises(StoreUnavailableError, match=r"cannot be written: Disk quota exceeded$"):
        store.save("it", ARTIFACT)
    monkeypatch.undo()
    found = store.load("it")
    assert found is not None
    assert found.facts == {"asr": 0.0}, "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


# --- root is nobody ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [lambda store: store.save("it", ARTIFACT), lambda store: store.check()])
def test_a_root_that_is_nobody_there_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Store], None]
) -> None:
    def squashed(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", squashed)
    with pytest.raises(StoreUnavailableError, match=r"cannot be written: Permission denied$"):
        work(Store(tmp_path / "store"))


def test_a_folder_of_another_user_is_read_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).save("it", ARTIFACT)

    def squashed(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(mounted.tempfile, "TemporaryFile", squashed)
    monkeypatch.setattr(os, "replace", squashed)
    assert Store(tmp_path).load("it") is not None
    with pytest.raises(StoreUnavailableError, match="cannot be locked: Permission denied"), Store(tmp_path).lock("it"):
        pass
