"""What a visit to the nodes says. A node is a folder here, where `ssh` runs a script; test_ray_up does it for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.cluster.reach_nodes import check_nodes
from study.spec.yaml_io import SpecError

# The last word but one is USER@HOST, the last the shell that reads the script. A host's programs lie in its folder.
SSH = """#!/bin/bash
host=${@: -2:1}; host=${host#*@}
echo "$*" >> FOLDER/calls
[ -e FOLDER/$host/says ] && { cat FOLDER/$host/says >&2; exit 255; }
PATH=FOLDER/$host:/usr/bin:/bin exec bash -s
"""
RAY, PYTHON = "#!/bin/sh\necho ray, version {}\n", "#!/bin/sh\necho Python {}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head and the workers a and b, all alike."""
    (tmp_path / "key").touch()
    program(tmp_path / "bin" / "ssh", SSH.replace("FOLDER", str(tmp_path)))
    for host in ("head", "a", "b"):
        program(tmp_path / host / "ray", RAY.format("2.60.0"))
        program(tmp_path / host / "python", PYTHON.format("3.12.1"))
        program(tmp_path / host / "rsync", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def config(folder: Path, **changes: Any) -> dict[str, Any]:
    shared = folder / "shared"
    return {
        "provider": {"type": "local", "head_ip": "head", "worker_ips": ["a", "b"]},
        "auth": {"ssh_user": "ann", "ssh_private_key": str(folder / "key")},
        "setup_commands": [
            f'test -d {shared} || {{ echo "{shared} is not there"; exit 1; }}',
            f"touch {folder}/changed",
        ],
        "head_start_ray_commands": ["ray stop", f"true; A=b ray start --head || {{ touch {folder}/changed; exit 1; }}"],
        "worker_start_ray_commands": ["A=b ray start --address=$RAY_HEAD_IP:6379"],
        **changes,
    }


def test_a_visit_to_nodes_that_are_well_says_nothing_and_changes_nothing(folder: Path) -> None:
    (folder / "shared").mkdir()
    assert check_nodes(config(folder)) == []
    assert not (folder / "changed").exists()


def test_workers_are_reached_through_the_head_with_the_key_that_is_here(folder: Path) -> None:
    (folder / "shared").mkdir()
    check_nodes(config(folder))
    head, *workers = (folder / "calls").read_text().splitlines()
    assert "ProxyCommand" not in head
    assert sorted(line.rpartition("ann@")[2] for line in workers) == ["a bash --login -s", "b bash --login -s"]
    for line in workers:
        assert f"ProxyCommand=ssh -i {folder / 'key'} -o BatchMode=yes" in line
        assert "-W %h:%p ann@head" in line.replace("'", "")


def test_each_node_has_one_line_for_its_first_fault(folder: Path) -> None:
    assert check_nodes(config(folder)) == [f"{host}: {folder / 'shared'} is not there" for host in ("head", "a", "b")]
    (folder / "shared").mkdir()
    program(folder / "a" / "ray", "#!/bin/sh\necho first >&2\necho broken >&2\nexit 1\n")
    program(folder / "b" / "ray", RAY.format("2.59.0"))
    assert check_nodes(config(folder)) == [
        "a: no Ray: broken",
        "b: Ray 2.59.0, Python 3.12.1, but the head has Ray 2.60.0, Python 3.12.1: all nodes need the same",
    ]


def test_a_command_that_fails_without_a_word_is_named(folder: Path) -> None:
    found = check_nodes(config(folder, setup_commands=['test -s "/no/where"']))
    assert found[0] == "head: failed: test -s /no/where"


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Warning: Permanently added 'a'.\nann@a: Permission denied (publickey).\n", "Permission denied (publickey): "),
        ("ssh: connect to host a port 22: Connection refused\n", "connect to host a port 22: Connection refused"),
        (
            "channel 0: open failed: connect failed: No route to host\nstdio forwarding failed\nConnection closed\n",
            "connect failed: No route to host",
        ),
        ("", "no connection"),
    ],
)
def test_why_ssh_failed_is_said_in_its_own_words(said: str, line: str, folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "b" / "says").write_text(said)
    (found,) = check_nodes(config(folder))
    assert found.startswith(f"b: ssh as ann: {line}")


def test_without_the_head_no_worker_is_tried(folder: Path) -> None:
    (folder / "head" / "says").write_text("ssh: connect to host head port 22: No route to host\n")
    assert check_nodes(config(folder)) == ["head: ssh as ann: connect to host head port 22: No route to host"]
    assert len((folder / "calls").read_text().splitlines()) == 1


def test_in_a_container_only_the_machine_itself_is_looked_at(folder: Path) -> None:
    program(folder / "head" / "docker", "")
    program(folder / "a" / "docker", "")
    assert check_nodes(config(folder, docker={"image": "i", "container_name": "c"})) == ["b: docker is not installed"]


def test_what_cannot_be_visited_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="coordinator"):
        check_nodes(config(folder, provider={"type": "local", "coordinator_address": "h:1"}))
    with pytest.raises(SpecError, match="ssh_private_key: /no/key: no such file"):
        check_nodes(config(folder, auth={"ssh_user": "ann", "ssh_private_key": "/no/key"}))
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(SpecError, match="ssh is not installed"):
        check_nodes(config(folder))
