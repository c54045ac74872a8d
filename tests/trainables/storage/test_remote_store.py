"""Claims of a store behind a URI: each node has a verified copy, what lies there decides, and one trains for all."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.remotes import Moody, new_uri
from tests.toy import toy_dataset, toy_spec
from trainables.data.images import Dataset
from trainables.storage.remote_store import RemoteStore, open_store
from trainables.storage.store import META, Artifact, DamagedArtifactError, Store, StoreUnavailableError
from trainables.victims.make import obtain_victim

NAME = "badnets-toy-0123456789abcdef"
CPU = torch.device("cpu")


def artifact(value: float = 1.0) -> Artifact:
    return Artifact({"model": {"w": torch.full((4, 3), value)}, "images": {"x": torch.zeros(2)}}, {"asr": value})


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[RemoteStore, RemoteStore]:
    """Two nodes of one store."""
    uri = new_uri()
    return RemoteStore(tmp_path / "first", uri), RemoteStore(tmp_path / "second", uri)


@pytest.fixture
def moody(tmp_path: Path) -> Iterator[RemoteStore]:
    yield RemoteStore(tmp_path / "moody", new_uri("moody"))
    Moody.refuses = None


def value(found: Artifact | None) -> float:
    assert found is not None
    return float(found.tensors["model"]["w"][0, 0])


def test_a_place_decides_what_kind_of_store_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERFT_CACHE", str(tmp_path / "cache"))
    assert open_store(tmp_path / "store") == Store(tmp_path / "store")
    assert open_store(f"file://{tmp_path}/store") == Store(tmp_path / "store")
    remote = open_store("memory://bucket/store")
    assert isinstance(remote, RemoteStore)
    assert remote.where == "memory://bucket/store"
    assert remote.root.parent == tmp_path / "cache"
    assert open_store("memory://bucket/other").root != remote.root
    monkeypatch.setenv("SUPERFT_STORE", "memory://bucket/store")
    assert open_store() == remote


def test_what_one_node_saves_the_other_loads(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    first, second = nodes
    assert second.load(NAME) is None
    assert not second.holds(NAME)
    first.save(NAME, artifact())
    assert second.holds(NAME)
    loaded = second.load(NAME)
    assert loaded is not None
    assert torch.equal(loaded.tensors["model"]["w"], artifact().tensors["model"]["w"])
    assert loaded.facts == {"asr": 1.0}


def test_the_layout_there_is_that_of_a_folder(nodes: tuple[RemoteStore, RemoteStore], tmp_path: Path) -> None:
    first, _ = nodes
    first.save(NAME, artifact())
    copy = Store(tmp_path / "copy")
    copy.path(NAME).mkdir(parents=True)
    for name in first.remote.sizes():
        first.remote.download(name, copy.root / name)
    assert value(copy.load(NAME)) == 1.0


def test_a_second_load_takes_the_copy_of_the_node(moody: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    moody.save(NAME, artifact())
    fetched: list[str] = []
    monkeypatch.setattr(RemoteStore, "_fetch", lambda self, name: fetched.append(name))
    assert value(moody.load(NAME)) == 1.0
    assert fetched == []


def test_a_damaged_copy_is_fetched_again(
    nodes: tuple[RemoteStore, RemoteStore], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = nodes
    first.save(NAME, artifact())
    second.load(NAME)
    (second.path(NAME) / "model.safetensors").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="superft.store"):
        assert value(second.load(NAME)) == 1.0
    assert "model.safetensors" in caplog.text
    assert "fetched again" in caplog.text


def test_where_two_nodes_made_two_the_one_that_lies_there_counts(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    first, second = nodes
    second.save(NAME, artifact(2.0))
    first.save(NAME, artifact(1.0))
    assert value(second.load(NAME)) == value(first.load(NAME)) == 1.0


def test_an_upload_that_was_cut_off_is_no_artifact(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    first, second = nodes
    first.save(NAME, artifact())
    order = [name for name in first.remote.sizes() if not name.endswith(META)]
    first.remote.delete([f"{NAME}/{META}"])
    assert order
    assert second.load(NAME) is None
    with second.lock(NAME):
        assert second.load_or_discard(NAME) is None
        second.save(NAME, artifact(2.0))
    assert value(first.load(NAME)) == 2.0


def test_the_file_with_the_checksums_goes_up_last(moody: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    upload = type(moody.remote).upload
    monkeypatch.setattr(
        type(moody.remote), "upload", lambda self, path, name: (order.append(name), upload(self, path, name))
    )
    moody.save(NAME, artifact())
    assert order[-1] == f"{NAME}/{META}"
    assert len(order) == 3


def test_damage_there_is_named_by_its_uri_and_can_be_rebuilt(
    nodes: tuple[RemoteStore, RemoteStore], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = nodes
    first.save(NAME, artifact())
    first.remote.write(f"{NAME}/model.safetensors", b"x")
    with pytest.raises(DamagedArtifactError, match=f"damaged file {first.uri}/{NAME}/model.safetensors"):
        second.load(NAME)
    with caplog.at_level(logging.WARNING, logger="superft.store"), second.lock(NAME):
        assert second.load_or_discard(NAME) is None
    assert "rebuilt" in caplog.text
    assert not second.holds(NAME)


def test_a_whole_copy_is_put_back_where_the_store_was_emptied(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    first, second = nodes
    first.save(NAME, artifact())
    first.remote.delete(list(first.remote.sizes()))
    assert first.load(NAME) is None, "others could not load it"
    with first.lock(NAME):
        assert value(first.load_or_discard(NAME)) == 1.0
    assert value(second.load(NAME)) == 1.0


def test_what_a_stranger_put_elsewhere_is_not_fetched(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    first, second = nodes
    first.save(NAME, artifact())
    first.remote.write(f"{NAME}/deeper/run.py", b"evil")
    second.load(NAME)
    assert sorted(path.name for path in second.path(NAME).iterdir()) == [
        META,
        "images.safetensors",
        "model.safetensors",
    ]


def test_a_lock_holds_across_nodes(nodes: tuple[RemoteStore, RemoteStore], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.storage.lease.POLL", 0.01)
    order: list[str] = []

    def wait() -> None:
        with nodes[1].lock(NAME):
            order.append("second")

    other = threading.Thread(target=wait)
    with nodes[0].lock(NAME):
        other.start()
        time.sleep(0.1)
        order.append("first")
    other.join(60)
    assert order == ["first", "second"]


def test_a_victim_is_trained_once_for_two_nodes_that_want_it_at_once(
    nodes: tuple[RemoteStore, RemoteStore], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trainables.storage.lease.POLL", 0.05)
    data: Dataset = toy_dataset()
    spec = toy_spec("badnets")
    found: list[float] = []

    def obtain(node: RemoteStore) -> None:
        torch.set_num_threads(1)
        found.append(obtain_victim(spec, data, node, CPU).evaluation.full.asr)

    threads = [threading.Thread(target=obtain, args=(node,)) for node in nodes]
    with caplog.at_level(logging.INFO, logger="superft.victims"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
    assert len(found) == 2
    assert found[0] == found[1]
    trained = [record.args for record in caplog.records if record.msg == "training victim %s"]
    assert len(trained) == len(set(map(str, trained))) == 2, "the victim and its control, once each"


def test_what_is_derived_stays_on_the_node(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    derived = nodes[0].derived()
    derived.save("features", artifact())
    assert type(derived) is Store
    assert nodes[0].remote.sizes() == {}


def test_storage_that_fails_is_no_damage_and_no_absence(moody: RemoteStore) -> None:
    moody.save(NAME, artifact())
    Moody.refuses = "the bucket is on fire"
    for attempt in (
        lambda: moody.load(NAME),
        lambda: moody.load_or_discard(NAME),
        lambda: moody.holds(NAME),
        lambda: moody.save(NAME, artifact()),
        moody.lock(NAME).__enter__,
        moody.check,
    ):
        with pytest.raises(StoreUnavailableError, match=f"store {moody.uri} cannot be .*the bucket is on fire"):
            attempt()
    Moody.refuses = None
    assert value(moody.load(NAME)) == 1.0


def test_facts_there_are_plain_json(nodes: tuple[RemoteStore, RemoteStore]) -> None:
    nodes[0].save(NAME, artifact())
    content = nodes[0].remote.read(f"{NAME}/{META}")
    assert content is not None
    assert json.loads(content)["content"]["facts"] == {"asr": 1.0}
