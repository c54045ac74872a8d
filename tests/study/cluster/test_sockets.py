"""A Ray of our own starts under any TMPDIR: where that is too long for sockets, a short place is taken and named."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from study.cluster.sockets import LONGEST_PLACE, LONGEST_SOCKET, SOCKET_IN_FOLDER, place_for_sockets
from study.record.temporary import NAME_BYTES, scratch_folder
from study.spec.yaml_io import SpecError
from tests.study.processes import new_place

LOCAL_RAY = """
import json, os
from study.cluster.address import Cluster, check_answers
from study.cluster.connect import ray_cluster, usable_nodes

with ray_cluster(None):
    import ray

    check_answers(Cluster(ray.get_runtime_context().gcs_address, "a Ray that runs"))
    said = {
        "socket": ray._private.worker._global_node.plasma_store_socket_name,
        "process": os.getpid(),
        "mode": os.stat(os.path.dirname(ray._private.worker._global_node._ray_params.temp_dir)).st_mode & 0o777,
        "cores": [node.cpus for node in usable_nodes()],
        "answer": ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()),
    }
print(json.dumps(said))
"""


def use_as_temporary(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))


@pytest.fixture
def long(tmp_path: Path) -> Path:
    return tmp_path / ("x" * LONGEST_PLACE)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/tmp` and `/var/tmp` cannot be written to."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) not in (Path("/tmp"), Path("/var/tmp")) and access(path, mode)
    )


def test_a_short_temporary_folder_is_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Path("/" + "x" * (LONGEST_PLACE - 1))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert place_for_sockets() == place
    assert caplog.records == []


def test_the_folder_is_as_long_as_was_reckoned_and_its_owners_alone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert len(os.fsencode(folder)) == len(os.fsencode(tmp_path)) + NAME_BYTES
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_long_temporary_folder_gives_way_to_a_short_one_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, long: Path
) -> None:
    use_as_temporary(monkeypatch, long)
    with caplog.at_level(logging.WARNING, "superft.engine"):
        assert place_for_sockets() == Path("/tmp")
    (line,) = caplog.messages
    assert line.startswith("Ray's files lie in /tmp: ")
    assert str(long) in line
    assert "\n" not in line


def test_bytes_count_and_not_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "ü" * (LONGEST_PLACE - 1))
    assert place_for_sockets() == Path("/tmp")


@pytest.mark.usefixtures("short")
def test_a_short_folder_of_the_user_is_taken_where_tmp_is_closed(monkeypatch: pytest.MonkeyPatch, long: Path) -> None:
    use_as_temporary(monkeypatch, long)
    with new_place(long.parent / "place") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
        monkeypatch.setenv("HOME", str(place.temporary))
        assert place_for_sockets() == place.temporary


@pytest.mark.usefixtures("short")
def test_without_any_short_folder_one_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch, long: Path) -> None:
    use_as_temporary(monkeypatch, long)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(long))
    with pytest.raises(SpecError, match=f"^TMPDIR=.*: set TMPDIR to .* at most {LONGEST_PLACE} bytes$"):
        place_for_sockets()


@pytest.mark.skipif(shutil.which("taskset") is None, reason="Linux with taskset")
def test_a_real_ray_starts_under_a_long_tmpdir_and_has_the_cores_of_its_driver(long: Path) -> None:
    long.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"TMPDIR": str(long)}
    ended = subprocess.run(
        ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", LOCAL_RAY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    folder = Path(said["socket"]).parents[3]
    assert folder.parent == Path("/tmp")
    assert said["mode"] == 0o700, "Ray opens its own folder to everybody; the one around it is its owner's alone"
    assert not folder.exists()
    assert ended.stderr.startswith("Ray's files lie in /tmp: ")
    assert len(os.fsencode(said["socket"])) <= LONGEST_SOCKET
    seven = 7 - len(str(said["process"]))
    assert len(os.fsencode(said["socket"])) == len(os.fsencode(folder)) + SOCKET_IN_FOLDER - seven
    assert said["cores"] == [1.0]
    assert said["answer"] == 7
