"""Claims of trainables.storage.store: written once, checked on every load, shared by processes that may die."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainables.storage.store import META, Artifact, DamagedArtifactError, Store, _digest, content_key, default_store

NAME = "badnets-toy-0123"


def artifact() -> Artifact:
    return Artifact(
        {
            "model": {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)},
            "images": {"pixels": torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)},
        },
        {"asr": 0.97, "settings": {"alpha": 0.2}, "seeds": [0, 1]},
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.save(NAME, artifact())
    return store


def test_saved_tensors_and_facts_come_back_exactly(store: Store) -> None:
    loaded = store.load(NAME)
    assert loaded is not None
    assert loaded.facts == artifact().facts
    for group, tensors in artifact().tensors.items():
        assert loaded.tensors[group].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(loaded.tensors[group][key], tensor)
            assert loaded.tensors[group][key].dtype == tensor.dtype


def test_channels_last_and_transposed_tensors_keep_their_values(store: Store) -> None:
    odd = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    store.save("odd", Artifact({"t": {"a": odd, "b": torch.arange(6).reshape(2, 3).T}}, {}))
    loaded = store.load("odd")
    assert loaded is not None
    assert torch.equal(loaded.tensors["t"]["a"], odd)
    assert torch.equal(loaded.tensors["t"]["b"], torch.arange(6).reshape(2, 3).T)


def test_what_was_never_saved_is_none(tmp_path: Path) -> None:
    assert Store(tmp_path / "nowhere").load(NAME) is None


def test_files_are_safetensors_and_json_alone(store: Store) -> None:
    assert sorted(file.name for file in store.path(NAME).iterdir()) == [
        META,
        "images.safetensors",
        "model.safetensors",
    ]


def test_stored_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    """Whoever may read the folder may read the victims: safetensors alone would write 0600."""
    before = os.umask(0o027)
    try:
        store = Store(tmp_path / "shared")
        store.save(NAME, artifact())
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in store.path(NAME).iterdir()}
    assert modes == dict.fromkeys([META, "images.safetensors", "model.safetensors"], 0o640)
    assert store.path(NAME).stat().st_mode & 0o777 == 0o750


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, alter, remove, empty])
@pytest.mark.parametrize("file", ["model.safetensors", "images.safetensors", META])
def test_damage_is_noticed_and_the_file_named(store: Store, file: str, damage: Callable[[Path], None]) -> None:
    if damage is alter and file == META:
        meta = json.loads((store.path(NAME) / META).read_text())
        meta["content"]["facts"]["asr"] = 0.01  # a lie in valid JSON
        (store.path(NAME) / META).write_text(json.dumps(meta))
    else:
        damage(store.path(NAME) / file)
    with pytest.raises(DamagedArtifactError) as caught:
        store.load(NAME)
    assert str(store.path(NAME) / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_artifact_is_named_in_the_log_removed_and_can_be_rebuilt(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(store.path(NAME) / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="superft.store"):
        assert store.load_or_discard(NAME) is None
    assert "model.safetensors" in caplog.text
    assert "rebuilt" in caplog.text
    assert not store.path(NAME).exists()
    store.save(NAME, artifact())
    assert store.load(NAME) is not None


def test_meta_of_a_stranger_names_no_file_outside_its_folder(store: Store, tmp_path: Path) -> None:
    # A valid checksum proves integrity, not good intentions: a path in the list must not be followed.
    (tmp_path / "secret.safetensors").write_bytes((store.path(NAME) / "model.safetensors").read_bytes())
    meta = json.loads((store.path(NAME) / META).read_text())
    checksum = meta["content"]["files"].pop("model.safetensors")
    meta["content"]["files"]["../../secret.safetensors"] = checksum
    meta["sha256"] = _digest(meta["content"])
    (store.path(NAME) / META).write_text(json.dumps(meta))
    with pytest.raises(DamagedArtifactError, match="secret"):
        store.load(NAME)


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(store: Store) -> None:
    stale = store.root / f".{NAME}.tmp-99999"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    other = store.root / ".another.tmp-99999"
    other.mkdir()
    store.save(NAME, artifact())
    assert not stale.exists()
    assert other.exists()  # its own writer may still be at work
    assert store.load(NAME) is not None


def test_failed_write_leaves_the_old_artifact(store: Store) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        store.save(NAME, Artifact({"model": {}}, {"loss": float("nan")}))
    loaded = store.load(NAME)
    assert loaded is not None
    assert loaded.facts == artifact().facts


def test_content_key_depends_on_content_and_not_on_order() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    keys = {content_key(identity) for identity in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": None})}
    assert len(keys) == 5


def test_default_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUPERFT_STORE", str(tmp_path / "mine"))
    assert default_store() == tmp_path / "mine"
    monkeypatch.delenv("SUPERFT_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "superft" / "store"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_store() == Path.home() / ".cache" / "superft" / "store"


HOLDER = """
import sys, time
from pathlib import Path
from trainables.storage.store import Store
with Store(Path(sys.argv[1])).lock("it"):
    (Path(sys.argv[1]) / ".it.tmp-1").mkdir()
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_a_killed_holder_is_free_at_once_and_its_leftovers_harmless(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    finally:
        holder.kill()
        holder.communicate()
    with store.lock("it"):  # one that is not free is waited for, and nobody would ever give it back
        store.save("it", artifact())
    assert store.load("it") is not None
    assert not (store.root / ".it.tmp-1").exists()
