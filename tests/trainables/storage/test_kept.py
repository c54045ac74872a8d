"""Claims of kept models: a file is whole or not there, a full disk costs no row, nobody else's file is removed."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.remotes import Moody, new_uri
from trainables.foreign.weights import read_weights
from trainables.storage import kept
from trainables.storage.kept import KeptModels, keeper, kept_name
from trainables.storage.remote_store import open_store
from trainables.storage.store import Store, StoreUnavailableError

NAME = kept_name("tiny-0123", "badnets--super_ft--0007--badnets--0--0")
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.5, -2.5])}


@pytest.fixture(params=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SUPERFT_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "store" if request.param == "folder" else new_uri())


def there(store: Store, name: str) -> bool:
    with KeptModels(store).opened(name) as path:
        return path is not None


def test_what_is_kept_is_read_again_with_its_hash(store: Store) -> None:
    digest = KeptModels(store).save(NAME, STATE, {"trial": "a/0007"})
    with KeptModels(store).opened(NAME) as path:
        assert path is not None
        file = read_weights(path)
        with safe_open(path, framework="pt") as opened:
            assert opened.metadata() == {"trial": "a/0007"}
    assert file.sha256 == digest
    assert all(torch.equal(file.states[""][name], value) for name, value in STATE.items())
    assert not there(store, kept_name("tiny-0123", "another"))


def test_a_trial_that_runs_again_writes_its_file_once_more(store: Store) -> None:
    KeptModels(store).save(NAME, {"weight": torch.zeros(3)}, {})
    digest = KeptModels(store).save(NAME, STATE, {})
    with KeptModels(store).opened(NAME) as path:
        assert path is not None
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_only_the_files_that_are_named_are_removed(store: Store) -> None:
    others = [kept_name("tiny-0123", "b"), kept_name("tiny-4567", "badnets--super_ft--0007--badnets--0--0")]
    for name in (NAME, *others):
        KeptModels(store).save(name, STATE, {})
    unknown = kept_name("tiny-0123", "never-written")
    assert KeptModels(store).discard([NAME, unknown, "kept/../victim/model.safetensors"]) == [NAME]
    assert [there(store, name) for name in (NAME, *others)] == [False, True, True]


@pytest.mark.parametrize("name", ["../x.safetensors", "kept/a/../../x.safetensors", "/kept/a/b.safetensors", "kept/a"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no name of a kept model"), KeptModels(Store(tmp_path)).opened(name):
        pass
    with pytest.raises(ValueError, match="is no name of a kept model"):
        kept_name("..", name)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / NAME
    path.parent.mkdir(parents=True)
    half, other = path.with_name(f".{path.name}.99.part"), path.with_name(".another.safetensors.99.part")
    for item in (half, other):
        item.write_bytes(b"half")
    assert not there(store, NAME)
    KeptModels(store).save(NAME, STATE, {})
    assert sorted(item.name for item in path.parent.iterdir()) == [other.name, path.name]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def full(tensors: Any, path: Path, metadata: Any = None) -> None:
    path.write_bytes(b"a part of it")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_is_a_column_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "save_tensors", full)
    told = keeper(store, NAME, {"trial": "a/0007"})(Small())
    assert told.keys() == {"not_kept", "seconds_keep"}
    assert told["not_kept"] == f"store {store.where}: No space left on device"
    assert not there(store, NAME)
    if isinstance(store.where, Path):
        assert [path for path in store.where.rglob("*") if path.is_file()] == []


def test_a_storage_that_fails_is_a_column(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERFT_CACHE", str(tmp_path / "cache"))
    store = open_store(new_uri("moody"))
    monkeypatch.setattr(Moody, "refuses", "the network is down")
    told = keeper(store, NAME, {})(Small())
    assert "the network is down" in told["not_kept"]
    monkeypatch.setattr(Moody, "refuses", None)
    told = keeper(store, NAME, {})(Small())
    assert told["kept"] == NAME
    assert there(store, NAME)


def test_a_store_that_cannot_be_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, name: str, path: Path) -> bool:
        raise OSError("the network is down")

    monkeypatch.setattr("trainables.storage.kept.Remote.download", broken)
    with pytest.raises(StoreUnavailableError, match="network is down"), KeptModels(open_store(new_uri())).opened(NAME):
        pass


def test_what_is_kept_shares_no_memory_with_the_model(tmp_path: Path) -> None:
    """Tied weights, which safetensors refuses to write twice, are written twice."""
    model = Small()
    model.register_parameter("tied", model.layer.weight)
    told = keeper(Store(tmp_path), NAME, {})(model)
    state: dict[str, Tensor] = read_weights(tmp_path / told["kept"]).states[""]
    assert torch.equal(state["tied"], state["layer.weight"])
