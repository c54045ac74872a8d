"""Claims of storage behind a URI: whole objects, exclusive creation, and one line for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remotes import Moody, new_uri
from trainables.storage.remote import Remote, RemoteError, as_place


@pytest.fixture
def remote() -> Remote:
    return Remote(new_uri())


@pytest.fixture
def moody() -> Iterator[Remote]:
    yield Remote(new_uri("moody"))
    Moody.refuses = None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("runs/a", Path("runs/a")),
        ("/mnt/runs", Path("/mnt/runs")),
        ("s3://bucket/runs/", "s3://bucket/runs"),
        ("file:///mnt/my%20runs", Path("/mnt/my runs")),
        (Path("runs"), Path("runs")),
    ],
)
def test_a_uri_stays_a_text_and_everything_else_is_a_path(text: str, place: Path | str) -> None:
    assert as_place(text) == place
    assert type(as_place(text)) is type(place) or isinstance(place, Path)


def test_objects_are_read_as_they_were_written(remote: Remote, tmp_path: Path) -> None:
    remote.write("a", b"one")
    remote.write("a", b"two")
    (tmp_path / "b").write_bytes(b"three")
    remote.upload(tmp_path / "b", "deep/er/b")
    assert remote.read("a") == b"two"
    assert remote.read_all(["deep/er/b", "none", "a"]) == [b"three", None, b"two"]
    assert remote.sizes() == {"a": 3, "deep/er/b": 5}
    assert remote.sizes("deep") == {"deep/er/b": 5}
    assert remote.download("deep/er/b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"three"


def test_what_is_not_there_is_no_error(remote: Remote, tmp_path: Path) -> None:
    assert remote.read("a") is None
    assert remote.sizes() == {}
    assert remote.modified("a") is None
    assert not remote.download("a", tmp_path / "a")
    remote.delete(["a"])


def test_an_object_is_created_once(remote: Remote) -> None:
    assert remote.create("a", b"first")
    assert not remote.create("a", b"second")
    assert remote.read("a") == b"first"


def test_deletion_passes_over_what_is_gone_already(remote: Remote) -> None:
    remote.write("a", b"")
    remote.write("b", b"")
    remote.delete(["a", "none", "b"])
    assert remote.sizes() == {}


def test_whatever_a_driver_raises_is_one_line_with_the_uri(moody: Remote) -> None:
    Moody.refuses = "the endpoint\nis on fire"
    for attempt in (lambda: moody.read("a"), lambda: moody.write("a", b""), moody.check):
        with pytest.raises(RemoteError) as caught:
            attempt()
        assert str(caught.value).startswith(moody.uri)
        assert str(caught.value).endswith("the endpoint is on fire")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(RemoteError, match=r"wonder://bucket/x: .*wonder"):
        Remote("wonder://bucket/x").read("a")


def test_a_driver_that_is_not_installed_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def refuse(uri: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(RemoteError, match=r"s3://bucket/x: Install s3fs .*; pip install 'superft\[s3\]'"):
        Remote("s3://bucket/x").read("a")
