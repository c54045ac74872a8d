"""Cores are those that this process may use: affinity and the quotas of control groups count, the machine does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.machine.cores import usable_cores

# Read before the tests put something else in its place.
OUR_FIRST_CORE = str(min(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else "0"


@pytest.fixture(autouse=True)
def _sixty_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)


def process(folder: Path, groups: str, *mounts: str) -> Path:
    """A folder as ``/proc/self``, with control groups mounted under ``folder``."""
    made = folder / "self"
    made.mkdir()
    (made / "cgroup").write_text(groups)
    lines = ["22 1 254:0 / / rw,relatime - ext4 /dev/root rw", "23 22 0:21 / /proc rw - proc  rw"]
    (made / "mountinfo").write_text("\n".join([*lines, *mounts]) + "\n")
    return made


def version_2(folder: Path, own: str, *, root: str = "/", **limits: str) -> Path:
    """A process of the group ``own`` on a machine with cgroup v2; ``limits``: group below the mount -> cpu.max."""
    for group, limit in limits.items():
        place = folder / "v2" / group.replace("_", "/").removeprefix("top")
        place.mkdir(parents=True, exist_ok=True)
        (place / "cpu.max").write_text(limit + "\n")
    mount = f"31 22 0:28 {root} {folder / 'v2'} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
    return process(folder, f"0::{own}\n", mount)


def version_1(folder: Path, quota: int, period: int = 100_000, *, own: str = "/job", root: str = "/") -> Path:
    """A process of a group below the mount, in cgroup v1, with a quota in microseconds."""
    inside = folder / "v1" / own.removeprefix(root).strip("/")
    inside.mkdir(parents=True)
    (inside / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (inside / "cpu.cfs_period_us").write_text(f"{period}\n")
    return process(
        folder,
        f"12:memory:/other\n4:cpu,cpuacct:{own}\n0::/\n",
        f"40 31 0:29 {root} {folder / 'v1'} rw - cgroup cgroup rw,cpu,cpuacct",
        f"41 31 0:30 / {folder / 'memory'} rw - cgroup cgroup rw,memory",
    )


def test_affinity_counts_and_not_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path / "nothing") == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 8, 9}, raising=False)
    assert usable_cores(tmp_path / "nothing") == 4


def test_without_affinity_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores(tmp_path / "nothing") == 64


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 64), ("400000 100000", 4), ("250000 100000", 2), ("20000 100000", 1), ("9900000 100000", 64)],
)
def test_a_quota_of_version_2_counts(tmp_path: Path, limit: str, cores: int) -> None:
    assert usable_cores(version_2(tmp_path, "/job", job=limit)) == cores


@pytest.mark.parametrize(("quota", "period", "cores"), [(-1, 100_000, 64), (300_000, 100_000, 3), (75_000, 50_000, 1)])
def test_a_quota_of_version_1_counts(tmp_path: Path, quota: int, period: int, cores: int) -> None:
    assert usable_cores(version_1(tmp_path, quota, period)) == cores


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    limits = {"slice": "600000 100000", "slice_job": "200000 100000", "slice_job_step": "max 100000"}
    assert usable_cores(version_2(tmp_path, "/slice/job/step", **limits)) == 2


def test_a_quota_beside_the_own_groups_does_not_count(tmp_path: Path) -> None:
    assert usable_cores(version_2(tmp_path, "/mine", mine="max 100000", other="100000 100000")) == 64


@pytest.mark.parametrize("own", ["/", "/../neighbour", "/docker/elsewhere"])
def test_a_container_that_does_not_see_its_own_group_takes_the_top_of_what_it_sees(tmp_path: Path, own: str) -> None:
    root = "/docker/abc" if own == "/docker/elsewhere" else "/"
    assert usable_cores(version_2(tmp_path, own, root=root, top="300000 100000")) == 3


def test_a_path_of_the_host_is_read_within_what_is_mounted(tmp_path: Path) -> None:
    assert usable_cores(version_1(tmp_path, 500_000, own="/docker/abc/inner", root="/docker/abc")) == 5


def test_the_smaller_one_of_affinity_and_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = version_2(tmp_path, "/job", job="400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert usable_cores(made) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores(made) == 4


@pytest.mark.skipif(shutil.which("taskset") is None, reason="Linux with taskset")
def test_a_process_that_was_given_one_core_counts_one() -> None:
    command = "from trainables.machine.cores import usable_cores; print(usable_cores())"
    ended = subprocess.run(
        ["taskset", "-c", OUR_FIRST_CORE, sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "1\n"
