"""Claims of a store that cannot be read or written for now: that is no damage, no absence, and nobody's trial."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_spec
from trainables.data.load import DataSource
from trainables.job import Cell
from trainables.storage import store as store_module
from trainables.storage.store import Artifact, Store, StoreUnavailableError
from trainables.workbench import Workbench

ARTIFACT = Artifact({"a": {"x": torch.zeros(3)}, "b": {"x": torch.ones(3)}}, {"asr": 1.0})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.save("it", ARTIFACT)
    return store


def refusing(code: int, function: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """``function``, which fails from its call number ``after`` on."""
    calls: list[int] = []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ENOTCONN])
def test_a_share_that_does_not_answer_is_neither_damage_nor_absence(
    store: Store, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "stat", refusing(code, Path.stat))
    for attempt in (store.load, store.load_or_discard, store.holds):
        with pytest.raises(StoreUnavailableError) as caught:
            attempt("it")
        assert str(caught.value) == f"store {store.root} cannot be read: {os.strerror(code)}"
    monkeypatch.undo()
    assert store.load("it") is not None, "it was left alone"


def test_a_file_that_cannot_be_read_is_not_thrown_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_sha256", refusing(errno.EIO, store_module._sha256, after=1))
    with pytest.raises(StoreUnavailableError, match="Input/output error"):
        store.load_or_discard("it")
    monkeypatch.undo()
    assert store.load("it") is not None


def test_half_an_artifact_on_a_full_disk_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "save_tensors", refusing(errno.ENOSPC, store_module.save_tensors, after=1))
    with pytest.raises(StoreUnavailableError, match=r"cannot be written: No space left on device$"):
        store.save("other", ARTIFACT)
    assert [path.name for path in store.root.iterdir()] == ["it"]
    with pytest.raises(StoreUnavailableError):
        store.save("it", ARTIFACT)
    monkeypatch.undo()
    assert store.load("it") is not None, "what was there is still there"


def test_a_full_disk_is_an_os_error_also_below_safetensors(tmp_path: Path) -> None:
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from trainables.storage.files import save_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    save_tensors({'x': torch.zeros(10000)}, Path(sys.argv[1]))\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.safetensors")], capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == str(errno.EFBIG), ran.stderr


def test_the_failure_travels_between_processes_as_it_is() -> None:
    error = StoreUnavailableError("store /mnt/victims cannot be read: Stale file handle")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is StoreUnavailableError
    assert str(again) == str(error)


def test_a_check_writes_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    store.check()
    assert list(store.root.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match=r"file cannot be written: File exists"):
        Store(tmp_path / "file").check()


def test_a_victim_that_is_missing_among_trials_is_not_trained_again(tmp_path: Path) -> None:
    """A mount that is gone looks like an empty store: every actor would begin to train."""
    cell = Cell(victim=toy_spec("badnets"), defense="none", data=DataSource("digits", image_size=8))
    bench = Workbench(Store(tmp_path / "store"), torch.device("cpu"), trains=False)
    with pytest.raises(StoreUnavailableError, match=r"store .*store holds victim badnets-digits-.* no more"):
        bench.run(cell, {})
    assert not (tmp_path / "store").exists()
