"""Staging of data: what was cut off goes on, what is there is not fetched again, and what is not as published is
refused. The server is real, on loopback."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.study.commands import assert_refused, invoke
from tests.trainables.data.pictures import noise, write, zipped
from trainables.data import archives
from trainables.data.archives import Archive, fetch_archive
from trainables.data.images import DataError
from trainables.data.sources.base import SOURCES, Source
from trainables.data.sources.folders import read_folder
from trainables.data.stage import check_fetchable, stage

CONTENT = bytes(range(256)) * 2000  # 512,000 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclass
class Server:
    """What it serves under any name, and what it was asked for.

    Args:
        cut: bytes of the answer after which the connection ends, for as many requests as the list holds.
        ranges: whether it understands ``Range``.
    """

    content: bytes = CONTENT
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def archive(self, name: str = "set.zip", md5: str = MD5) -> Archive:
        return Archive(f"{self.url}/{name}", f"below/{name}", md5)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.ranges else 0  # type: ignore[index]
            if self.path.endswith("absent"):
                self.send_error(404)
                return
            if begin >= len(state.content):
                self.send_error(416)
                return
            content = state.content[begin:]
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: state.cut.pop(0)] if state.cut else content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the test's output stays readable."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def quiet(name: str, have: int, total: int | None) -> None:
    """Nobody is told."""


def test_a_file_comes_whole_with_progress_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    assert fetch_archive(server.archive(), tmp_path, lambda *item: told.append(item))
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT
    assert told[-1] == ("set.zip", len(CONTENT), len(CONTENT))
    assert [have for _, have, _ in told] == sorted({have for _, have, _ in told})
    assert not fetch_archive(server.archive(), tmp_path, quiet)
    assert server.asked == [None]


def test_what_was_cut_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = [100_000, 150_000]
    assert fetch_archive(server.archive(), tmp_path, quiet)
    assert server.asked == [None, "bytes=100000-", "bytes=250000-"]
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT


def test_a_later_command_goes_on_from_what_an_earlier_one_left(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut = [100_000, *[0] * archives.MOST_STOPS]
    with pytest.raises(DataError, match=r"set.zip: .*; 100000 bytes are there, and the same command goes on from them"):
        fetch_archive(server.archive(), tmp_path, quiet)
    assert not (tmp_path / "below/set.zip").exists(), "a half file never has the name of a whole one"
    server.asked.clear()
    server.cut.clear()
    assert fetch_archive(server.archive(), tmp_path, quiet)
    assert server.asked == ["bytes=100000-"]
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "below").glob(".*.part")] == []


def test_a_server_that_knows_no_ranges_is_asked_for_all_of_it(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [100_000]
    assert fetch_archive(server.archive(), tmp_path, quiet)
    assert server.asked == [None, "bytes=100000-"]
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/.set.zip.part").write_bytes(CONTENT)
    assert fetch_archive(server.archive(), tmp_path, quiet)
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"", b"x" * 1000], ids=["from the server", "after a damaged part"])
def test_a_wrong_checksum_is_refused_and_nothing_is_left(server: Server, tmp_path: Path, left: bytes) -> None:
    if left:
        (tmp_path / "below").mkdir()
        (tmp_path / "below/.set.zip.part").write_bytes(left)
    else:
        server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=rf"not what was published \(md5 [0-9a-f]+, not {MD5}\), and was deleted"):
        fetch_archive(server.archive(), tmp_path, quiet)
    assert {path.suffix for path in (tmp_path / "below").iterdir()} <= {".lock"}
    server.content = CONTENT
    assert fetch_archive(server.archive(), tmp_path, quiet), "the same command, once that is mended"


def test_a_file_that_is_there_and_damaged_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/set.zip").write_bytes(CONTENT[:-1])
    assert fetch_archive(server.archive(), tmp_path, quiet)
    assert (tmp_path / "below/set.zip").read_bytes() == CONTENT


def test_failures_are_one_line_each(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(archive: Archive) -> str:
        with pytest.raises(DataError) as caught:
            fetch_archive(archive, tmp_path, quiet)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert said(server.archive("absent")).startswith(f"{server.url}/absent: Not Found")
    assert "refused" in said(Archive("http://127.0.0.1:1/x", "x", MD5))
    (tmp_path / "file").write_text("")
    assert "file" in said(Archive(f"{server.url}/x", "file/x", MD5))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "512000 bytes are to come" in said(server.archive())


def test_every_set_that_is_fetched_names_what_torchvision_would_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    fetched: dict[str, str] = {}

    def note(url: str, *args: Any, md5: str, **more: Any) -> None:
        fetched[url] = md5

    monkeypatch.setattr("torchvision.datasets.gtsrb.download_and_extract_archive", note)
    with pytest.raises(RuntimeError):  # nothing came
        datasets.GTSRB(str(tmp_path), split="test", download=True)
    (gtsrb,) = [source.archives for name, source in SOURCES.items() if name == "gtsrb"]
    assert gtsrb is not None
    ours = {archive.url: archive.md5 for archive in gtsrb()}
    assert fetched.items() <= ours.items()
    assert len(ours) == 3, "and the training part of the final benchmark"
    for name in ("cifar10", "cifar100", "svhn", "stl10"):
        source = SOURCES.get(name)
        assert source.archives is not None
        for archive in source.archives():
            assert archive.url.endswith(archive.path)
            assert re.fullmatch("[0-9a-f]{32}", archive.md5)


@pytest.fixture
def published(server: Server, tmp_path: Path) -> Iterator[str]:
    """A data set of two classes that the server has as a zip file."""
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(3):
                write(tmp_path / f"pictures/{part}/{name}/{number}.png", noise(100 * label + number + len(part)))
    server.content = zipped(tmp_path / "pictures", tmp_path / "pictures.zip").read_bytes()
    archive = Archive(f"{server.url}/pets.zip", "pets.zip", hashlib.md5(server.content).hexdigest())
    about = {"description": "toy", "image_size": 12, "num_classes": 2, "flip": False, "mean": None, "std": None}
    SOURCES.add(
        "pets",
        Source(
            **about,
            read=lambda size, root, download: read_folder(f"folder:{root / 'pets.zip'}", size, root),
            files=("pets.zip",),
            archives=lambda: (archive,),
        ),
    )
    yield "pets"
    SOURCES.remove("pets")


def test_staging_makes_a_set_ready_and_says_what_it_has_already(published: str, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = invoke("fetch", published, "--root", root)
    assert first.exit_code == 0, first.stderr
    assert first.stderr.splitlines() == [
        "pets: pets.zip fetched, checksum right",
        f"pets: ready in {root}: 6 training and 6 test images",
    ]
    second = invoke("fetch", published, "--root", root)
    assert second.stderr.splitlines()[0] == "pets: there already"
    assert len(server.asked) == 1


def test_a_set_that_is_not_fetched_is_refused_before_the_first_byte(published: str, tmp_path: Path) -> None:
    assert_refused(invoke("fetch", published, "cifar-10", "--root", tmp_path / "root"), "did you mean 'cifar10'?")
    assert_refused(invoke("fetch", "folder:/mine", "--root", tmp_path / "root"), "a folder of your own")
    assert_refused(invoke("fetch", "tiny_imagenet", "--root", tmp_path / "root"), "tiny_imagenet is not fetched")
    assert not (tmp_path / "root").exists()
    check_fetchable("digits")


def test_a_set_that_ships_with_a_library_is_ready_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    stage("digits", tmp_path, said.append, quiet)
    assert said == [f"digits: ready in {tmp_path}: 1297 training and 500 test images"]
