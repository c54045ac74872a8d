"""Claims of a study on S3 (a server that the test starts): killed and continued elsewhere, victims trained once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from study.record.object_log import SegmentLog
from tests.s3 import s3_server
from tests.study.processes import GATED, PATIENCE, Place, new_place, on_one_core, wait_for
from tests.study.run.test_nodes import ON_ALL, SLOW_ENOUGH, WIDE_ENOUGH, Nodes
from trainables.storage.kept import KeptModels, kept_name
from trainables.storage.lease import Lease, LeaseTakenError
from trainables.storage.remote import Remote, RemoteError
from trainables.storage.remote_store import RemoteStore, open_store

pytestmark = pytest.mark.timeout(1800)  # whole studies, several times


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_server() as uri:
        yield uri


@pytest.fixture(scope="module")
def place(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("s3"), on_one_core()) as place:
        yield place


def rows_at(uri: str) -> list[dict[str, Any]]:
    content = SegmentLog(Remote(uri), "trials.jsonl", salvage=True).read()
    return [json.loads(line) for line in content.splitlines()]


# -- the storage itself: cheap, by default --------------------------------------------------------------------------


def test_of_two_that_create_an_object_at_once_one_wins(bucket: str) -> None:
    remote = Remote(f"{bucket}/create")
    won: list[int] = []

    def create(number: int) -> None:
        if remote.create("it", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert remote.read("it") == str(won[0]).encode()


def test_kept_models_lie_there_and_only_those_named_are_removed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERFT_CACHE", str(tmp_path))
    kept, names = KeptModels(open_store(f"{bucket}/kept-store")), [kept_name("tiny-0123", name) for name in "abc"]
    digests = [kept.save(name, {"weight": torch.full((3,), float(i))}, {}) for i, name in enumerate(names)]
    assert kept.discard([names[1], kept_name("tiny-0123", "never")]) == [names[1]]
    for name, digest in zip(names, digests, strict=True):
        with kept.opened(name) as path:
            found = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        assert found == (None if name == names[1] else digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # nothing of them stays on the node


def test_objects_of_others_are_seen_at_once(bucket: str) -> None:
    """No list is kept from an earlier look."""
    remote, other = Remote(f"{bucket}/seen"), Remote(f"{bucket}/seen")
    assert remote.sizes() == {}
    other.write("a/b", b"x")
    assert remote.sizes() == {"a/b": 1}
    first = remote.modified("a/b")
    assert first is not None
    assert first.tzinfo is not None
    other.delete(["a/b", "none"])
    assert remote.sizes() == {}
    assert remote.modified("a/b") is None


def test_a_log_and_a_claim_work_there(bucket: str) -> None:
    remote = Remote(f"{bucket}/log")
    log = SegmentLog(remote, "rows", salvage=True)
    log.read()
    log.append(b"one\n")
    log.append(b"two\n")
    late = SegmentLog(remote, "rows", salvage=True)
    assert late.read() == b"one\ntwo\n"
    log.append(b"three\n")
    with pytest.raises(RemoteError, match="another process"):
        late.append(b"other\n")
    log.rewrite(b"one\ntwo\nthree\n")
    assert remote.sizes() == {"rows": 14}
    lease = Lease(remote, ".driver")
    lease.acquire()
    with pytest.raises(LeaseTakenError):
        Lease(remote, ".driver").acquire()
    lease.release()


def test_a_bucket_that_is_not_there_is_never_made(bucket: str) -> None:
    with pytest.raises(RemoteError, match=r"s3://no-such-bucket/x/a: .*bucket does not exist"):
        Remote("s3://no-such-bucket/x").write("a", b"")
    assert Remote("s3://no-such-bucket/x").sizes() == {}


# -- whole studies: real processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(bucket: str, place: Place) -> SimpleNamespace:
    """A study looked at, refused to a second driver, killed with SIGKILL, and continued without any local state.

    Most of its trials wait for a gate that is opened only then: it was in the middle.
    """
    uri, store = f"{bucket}/runs/killed", f"{bucket}/store"
    spec = place.spec("killed", **GATED, search={"trials": 6, "startup_trials": 2})
    command = ("run", spec, "--out", uri, "--store", store)
    os.environ["SUPERFT_CACHE"] = str(place.folder / "cache-1")
    first = place.start(*command, plug_in=True)
    wait_for(lambda: len(rows_at(uri)) >= 3, PATIENCE, first.stderr.read_text)
    looking = [place.start(*command, plug_in=True), place.start("show", uri, plug_in=True)]
    rival, shown = (one.end() for one in looking)
    first.process.send_signal(signal.SIGKILL)
    first.end()
    place.wait_until_killed()
    before = rows_at(uri)
    place.open_gate()
    shutil.rmtree(place.folder / "cache-1")
    os.environ["SUPERFT_CACHE"] = str(place.folder / "cache-2")
    remote = Remote(uri)
    claim = max(remote.sizes(".driver"))
    content = remote.read(claim)
    assert content is not None
    remote.write(claim, json.dumps({**json.loads(content), "machine": "another"}).encode())
    early = place.run(*command, plug_in=True)
    remote.write(claim, content)  # of this machine, where its process is gone
    second = place.run(*command, plug_in=True, timeout=PATIENCE)
    again = place.run(*command, plug_in=True)
    reported = place.run("report", uri, plug_in=True)
    place.wait_until_alone()
    return SimpleNamespace(
        uri=uri, store=store, before=before, rival=rival, shown=shown, early=early, second=second, again=again,
        reported=reported, left=place.left_over(),
    )  # fmt: skip


@pytest.mark.cluster
def test_a_killed_study_is_continued_from_the_uri_alone(killed: SimpleNamespace) -> None:
    assert 3 <= len(killed.before) < 7
    assert killed.second.code == 0, killed.second.stderr
    rows = rows_at(killed.uri)
    assert rows[: len(killed.before)] == killed.before
    expected = [f"badnets/gated/{number:04d}" for number in range(6)] + ["badnets/none/baseline"]
    assert sorted(row["trial"] for row in rows) == expected
    assert {row["status"] for row in rows} <= {"ok", "diverged"}
    assert f"continuing: {len(killed.before)} of 7 trials are done" in killed.second.stderr


@pytest.mark.cluster
def test_its_victims_are_taken_from_the_store_and_valid(killed: SimpleNamespace, tmp_path: Path) -> None:
    assert killed.second.stderr.count("from the store") == 2, killed.second.stderr
    assert "trained in" not in killed.second.stderr
    store = RemoteStore(tmp_path / "cache", killed.store)
    names = {name.partition("/")[0] for name in store.remote.sizes() if not name.startswith(".")}
    assert len(names) == 2
    assert all(store.load(name) is not None for name in names)


@pytest.mark.cluster
def test_a_second_driver_is_refused_while_the_first_lives_or_may_live(killed: SimpleNamespace) -> None:
    for refused in (killed.rival, killed.early):
        assert refused.code == 2
        assert refused.stderr.count("\n") == 1
        assert f"another process runs the study in {killed.uri} (process " in refused.stderr


@pytest.mark.cluster
def test_commands_work_on_the_uri(killed: SimpleNamespace) -> None:
    assert killed.shown.code == 0, killed.shown.stderr
    assert f"study killed in {killed.uri}: " in killed.shown.stdout
    assert f"the study in {killed.uri} is finished: 7 trials; nothing was run" in killed.again.stdout
    assert killed.reported.stdout == f"{killed.uri}/report.html\n"


@pytest.mark.cluster
def test_in_the_end_there_is_what_a_local_folder_holds(killed: SimpleNamespace) -> None:
    names = Remote(killed.uri).sizes()
    top = {name for name in names if "/" not in name}
    assert top == {
        "study.yaml", "victims.json", "trials.jsonl", "trials.csv", "front.csv", "optuna.journal", "report.html",
        "now.json",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in names if "/" in name} == {"figures"}
    assert killed.left == []


@pytest.mark.cluster
def test_no_victim_is_trained_twice_by_two_nodes(bucket: str, place: Place) -> None:
    """Each node has its own cache, as two machines have. Two of the trials end only once both nodes have one."""
    nodes_place = dataclasses.replace(place, folder=place.folder / "two")
    uri, store = f"{bucket}/runs/two", f"{bucket}/store-of-two"
    before = dict(os.environ)
    os.environ["SUPERFT_CACHE"] = str(place.folder / "cache-head")
    nodes = Nodes(nodes_place)
    try:
        for number in (1, 2):
            os.environ["SUPERFT_CACHE"] = str(place.folder / f"cache-node-{number}")
            nodes.add()
        spec = nodes_place.spec(
            "two", attacks=["badnets", "blended"], baselines=["none", "meets"],
            search={"trials": 4, "startup_trials": 2}, defense=SLOW_ENOUGH, width=WIDE_ENOUGH,
            victim=ON_ALL,
        )  # fmt: skip
        where = ("--out", uri, "--store", store, "--address", nodes.address)
        done = nodes_place.run("run", spec, *where, plug_in=True, timeout=PATIENCE)
        assert done.code == 0, done.stderr
        trained = [line for line in done.stderr.splitlines() if "trained in" in line]
        assert len(trained) == 3, done.stderr
        rows = rows_at(uri)
        searched = [row for row in rows if row["defense"] == "none" and row["status"] == "ok"]
        assert len(rows) == 2 * 2 + 4 * len(searched), "no search where there was nothing to repair"
        assert len({row["node"] for row in rows if row["defense"] == "meets"}) == 2
        copies = [list((place.folder / f"cache-node-{number}").glob("*/*/artifact.json")) for number in (1, 2)]
        assert all(copies), "both nodes worked on copies of their own"
        assert len({path.read_bytes() for path in [*copies[0], *copies[1]]}) == 3, "of the same three victims"
    finally:
        nodes.cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def test_superft_without_the_driver_package_says_what_to_install(tmp_path: Path) -> None:
    import sys

    program = "import sys; sys.modules['s3fs'] = None; from study.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "show", "s3://bucket/study"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "pip install 'superft[s3]'" in ran.stderr
