"""`superft cluster-file`: the shipped cluster.yaml with a site's values, which Ray takes; bad values in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import Result

from study.cluster.check_file import check_cluster
from tests.study.cluster.test_check_file import ray_accepts
from tests.study.commands import assert_refused, invoke

GOOD = {
    "head": "10.1.2.3",
    "workers": "10.1.2.4,dgx-2.lab",
    "gpus": "4",
    "shared": "/lustre/ann/superft",
    "user": "ann",
    "key": "~/.ssh/cluster",
}


def write(out: Path, **changes: str) -> Result:
    given = GOOD | changes
    return invoke("cluster-file", "--out", out, *(word for key in given for word in (f"--{key}", given[key])))


def test_the_sites_values_stand_everywhere_and_no_change_is_left(tmp_path: Path) -> None:
    out = tmp_path / "site.yaml"
    assert write(out).exit_code == 0
    text = out.read_text()
    config = yaml.safe_load(text)
    assert config["provider"] == {"type": "local", "head_ip": "10.1.2.3", "worker_ips": ["10.1.2.4", "dgx-2.lab"]}
    assert config["auth"] == {"ssh_user": "ann", "ssh_private_key": "~/.ssh/cluster"}
    head, worker = config["head_start_ray_commands"][1], config["worker_start_ray_commands"][1]
    assert "--num-gpus=0 " in head
    assert "--num-gpus=4 " in worker
    for command in (head, worker, *config["setup_commands"]):
        assert "/lustre/ann/superft" in command
    assert "/shared/superft" not in text
    lines = [line for line in text.splitlines() if "CHANGE" in line]
    assert [line for line in lines if "image:" not in line and "Lines marked" not in line] == []
    assert ray_accepts(config)
    assert check_cluster(config).mistakes == check_cluster(config).notes == []


def test_a_head_alone_runs_the_trials_itself(tmp_path: Path) -> None:
    assert write(tmp_path / "a.yaml", workers="").exit_code == 0
    config = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert config["provider"]["worker_ips"] == []
    assert "--num-gpus=4 " in config["head_start_ray_commands"][1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head": "10.1.2.3; reboot"}, "--head: '10.1.2.3; reboot'"),
        ({"workers": "10.1.2.4,,10.1.2.5"}, "--workers: ''"),
        ({"workers": "10.1.2.3"}, "10.1.2.3 is the head already"),
        ({"workers": "a,a"}, "a is there twice"),
        ({"head": "198.51.100.10"}, "198.51.100.10 is an address for examples"),
        ({"shared": "lustre"}, "--shared: 'lustre'"),
        ({"shared": "/a b"}, "--shared: '/a b'"),
        ({"user": "ann smith"}, "--user: 'ann smith'"),
        ({"key": "id_ed25519"}, "--key: 'id_ed25519'"),
    ],
)
def test_bad_values_are_refused_in_one_line_and_nothing_is_written(
    changes: dict[str, str], named: str, tmp_path: Path
) -> None:
    assert_refused(write(tmp_path / "site.yaml", **changes), named)
    assert not (tmp_path / "site.yaml").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "site.yaml"
    out.write_text("mine")
    assert_refused(write(out), "is there already")
    assert out.read_text() == "mine"
