"""The shipped cluster file passes Ray's own validation and ours; each mistake that Ray lets pass gets its line.

And the recipes beside it: the Slurm script runs, with stand-ins for Slurm's commands.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from study.cli import main
from study.cluster.check_file import check_cluster
from tests.study.processes import Place, Running, new_place, rows_of, wait_for
from tests.study.tiny import TINY

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "cluster.yaml"
Config = dict[str, Any]


def config() -> Config:
    content = yaml.safe_load(SHIPPED.read_text())
    assert isinstance(content, dict)
    return content


def ray_accepts(given: Config) -> bool:
    """Ray's own validation, without a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(given)))
    return True


def start(given: Config, node: str, old: str, new: str) -> None:
    """Change the text of a node's `ray start`."""
    commands = given[f"{node}_start_ray_commands"]
    assert old in commands[-1]
    commands[-1] = commands[-1].replace(old, new)


def test_the_shipped_file_passes_rays_own_validation_and_ours() -> None:
    assert ray_accepts(config())
    assert check_cluster(config()).mistakes == []


def test_the_addresses_of_the_shipped_file_are_pointed_out_until_they_are_changed() -> None:
    notes = check_cluster(config()).notes
    assert [note.split(":")[0] for note in notes] == ["provider.head_ip", "provider.worker_ips", "provider.worker_ips"]
    changed = config()
    changed["provider"] |= {"head_ip": "10.1.2.3", "worker_ips": ["10.1.2.4", "dgx-2.lab"]}
    assert check_cluster(changed).notes == []


def test_the_container_of_the_shipped_file_is_one_that_passes_too() -> None:
    lines = SHIPPED.read_text().splitlines()
    first = lines.index("# docker:")
    block = [line.removeprefix("# ") for line in lines[first : lines.index("#     - -v /shared:/shared") + 1]]
    with_docker = config() | yaml.safe_load("\n".join(block))
    assert with_docker["docker"]["container_name"] == "superft"
    assert ray_accepts(with_docker)
    assert check_cluster(with_docker).mistakes == []


def test_mps_of_the_shipped_file_is_off_and_its_line_is_a_command() -> None:
    assert config()["worker_setup_commands"] == []
    lines = SHIPPED.read_text().splitlines()
    first = lines.index("worker_setup_commands: []")
    block = [line.removeprefix("#") for line in lines[first + 1 : lines.index("", first)]]
    switched_on = config() | yaml.safe_load("\n".join(["worker_setup_commands:", *block]))
    (command,) = switched_on["worker_setup_commands"]
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    assert "CUDA_MPS_PIPE_DIRECTORY=/tmp/superft-mps" in command
    assert "CUDA_MPS_PIPE_DIRECTORY=/tmp/superft-mps" in switched_on["worker_start_ray_commands"][1]
    assert ray_accepts(switched_on)
    assert check_cluster(switched_on).mistakes == []


# What is done to the shipped file, and what the line about it names. Those marked True pass Ray's own validation.
MISTAKES: list[tuple[str, Callable[[Config], object], bool, tuple[str, ...]]] = [
    (
        "a typo inside provider",
        lambda c: c["provider"].update(worker_ip=[]),
        True,
        ("'provider.worker_ip'", "did you mean 'worker_ips'"),
    ),
    (
        "no autoscaling config",
        lambda c: start(c, "head", "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        True,
        ("head_start_ray_commands", "no --autoscaling-config", "no worker is ever started"),
    ),
    (
        "the autoscaler that leaves one worker out",
        lambda c: start(c, "head", "RAY_enable_autoscaler_v2=0", ""),
        True,
        ("head_start_ray_commands: no RAY_enable_autoscaler_v2=0", "never started"),
    ),
    (
        "another autoscaling config",
        lambda c: start(c, "head", "~/ray_bootstrap_config.yaml", "/etc/cluster.yaml"),
        True,
        ("--autoscaling-config=/etc/cluster.yaml",),
    ),
    (
        "a typo in an option",
        lambda c: start(c, "head", "--autoscaling-config", "--autoscaling-confg"),
        True,
        ("head_start_ray_commands: ray start", "--autoscaling-confg"),
    ),
    (
        "a number that is none",
        lambda c: start(c, "worker", "--num-gpus=8", "--num-gpus=all"),
        True,
        ("worker_start_ray_commands: ray start", "all"),
    ),
    (
        "an open dashboard",
        lambda c: start(c, "head", "--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0"),
        True,
        ("--dashboard-host=0.0.0.0", "ssh -L"),
    ),
    (
        "no dashboard",
        lambda c: start(c, "head", "--dashboard-port=8265", "--include-dashboard=false"),
        True,
        ("--include-dashboard=false", "jobs"),
    ),
    (
        "a head that does not start the cluster",
        lambda c: start(c, "head", "--head", ""),
        True,
        ("without --head",),
    ),
    (
        "a worker without the head's address",
        lambda c: start(c, "worker", "--address=$RAY_HEAD_IP:6379", ""),
        True,
        ("worker_start_ray_commands: no --address", "--address=$RAY_HEAD_IP:6379"),
    ),
    (
        "a worker at another port",
        lambda c: start(c, "head", "--port=6379", "--port=6380"),
        True,
        ("worker_start_ray_commands: --address=$RAY_HEAD_IP:6379", "--address=$RAY_HEAD_IP:6380"),
    ),
    (
        "a worker that is a head",
        lambda c: start(c, "worker", "--address=$RAY_HEAD_IP:6379", "--head"),
        True,
        ("worker_start_ray_commands: --head", "cluster of its own"),
    ),
    (
        "a start that blocks",
        lambda c: start(c, "worker", "--num-gpus=8", "--block"),
        True,
        ("worker_start_ray_commands: --block",),
    ),
    (
        "no token",
        lambda c: start(c, "worker", "RAY_AUTH_MODE=token", ""),
        True,
        ("worker_start_ray_commands: no RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"),
    ),
    (
        "a token that is switched off",
        lambda c: start(c, "head", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        True,
        ("head_start_ray_commands: RAY_AUTH_MODE=disabled",),
    ),
    (
        "a quote that never ends",
        lambda c: start(c, "head", "--port", "'--port"),
        True,
        ("head_start_ray_commands", "No closing quotation"),
    ),
    (
        "no start at all",
        lambda c: c.update(worker_start_ray_commands=["ray stop"]),
        True,
        ("worker_start_ray_commands: 0 times `ray start`",),
    ),
    (
        "the defaults of Ray",
        lambda c: c.pop("head_start_ray_commands"),
        True,
        ("head_start_ray_commands: missing", "token"),
    ),
    (
        "a container without a name",
        lambda c: c.update(docker={"image": "a"}),
        False,
        ("docker.container_name: missing",),
    ),
    (
        "a container without an image",
        lambda c: c.update(docker={"container_name": "a", "head_image": "b"}),
        False,
        ("docker.image: missing", "worker_image"),
    ),
    (
        "a placeholder",
        lambda c: c["provider"].update(head_ip="<HEAD_IP>"),
        True,
        ("provider.head_ip: '<HEAD_IP>' is a placeholder",),
    ),
    (
        "a placeholder in a list",
        lambda c: c["provider"].update(worker_ips=["WORKER_NODE_1_HOSTNAME"]),
        True,
        ("provider.worker_ips: 'WORKER_NODE_1_HOSTNAME' is a placeholder",),
    ),
    (
        "a head among the workers",
        lambda c: c["provider"]["worker_ips"].append("198.51.100.10"),
        True,
        ("provider.worker_ips: 198.51.100.10 is the head already",),
    ),
    (
        "a worker twice",
        lambda c: c["provider"]["worker_ips"].append("198.51.100.11"),
        True,
        ("provider.worker_ips: 198.51.100.11 is there twice",),
    ),
    (
        "fewer workers than are started",
        lambda c: c.update(max_workers=1),
        False,
        ("max_workers: 1 is below the 2",),
    ),
    (
        "a typo at the top",
        lambda c: c.update(setup_command=[]),
        False,
        ("unknown key 'setup_command'", "did you mean 'setup_commands'"),
    ),
    (
        "a typo in auth",
        lambda c: c["auth"].update(ssh_usr="a"),
        False,
        ("unknown key 'auth.ssh_usr'", "did you mean 'ssh_user'"),
    ),
    (
        "no user",
        lambda c: c["auth"].pop("ssh_user"),
        True,
        ("auth.ssh_user: missing",),
    ),
    (
        "a wrong type",
        lambda c: c["provider"].update(worker_ips="198.51.100.11"),
        False,
        ("provider.worker_ips", "198.51.100.11"),
    ),
    (
        "another provider",
        lambda c: c["provider"].update(type="aws"),
        False,
        ("provider.type: 'aws'", "local"),
    ),
    (
        "no head",
        lambda c: c["provider"].pop("head_ip"),
        False,
        ("provider.head_ip: missing",),
    ),
]


@pytest.mark.parametrize(("change", "passes_ray", "named"), [row[1:] for row in MISTAKES], ids=[r[0] for r in MISTAKES])
def test_each_mistake_gets_one_line_that_names_it(
    change: Callable[[Config], object], passes_ray: bool, named: tuple[str, ...]
) -> None:
    given = config()
    change(given)
    mistakes = check_cluster(given).mistakes
    assert len(mistakes) == 1
    assert "\n" not in mistakes[0]
    for text in named:
        assert text in mistakes[0]
    if passes_ray:  # the reason why this check exists
        assert ray_accepts(given)


@pytest.mark.parametrize(
    "command",
    [
        "export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:6379",
        "RAY_AUTH_MODE=token /opt/venv/bin/ray start --address ${RAY_HEAD_IP}:6379 --num-gpus=$GPUS",
        "test -d '/a; b' && env RAY_AUTH_MODE=token nohup ray start --address=$RAY_HEAD_IP:6379",
        "RAY_AUTH_MODE=token ray start --address=198.51.100.10:6379",
        "true\nexport RAY_AUTH_MODE=token\nray start --address=$RAY_HEAD_IP:6379",
    ],
)
def test_other_ways_to_write_the_same_are_right(command: str) -> None:
    assert check_cluster(config() | {"worker_start_ray_commands": ["ray stop", command]}).mistakes == []


def test_a_variable_holds_for_its_own_command_only() -> None:
    commands = ["export RAY_AUTH_MODE=token", "ray start --address=$RAY_HEAD_IP:6379"]
    (mistake,) = check_cluster(config() | {"worker_start_ray_commands": commands}).mistakes
    assert "no RAY_AUTH_MODE=token" in mistake


def test_a_coordinator_hands_out_the_nodes_instead() -> None:
    given = config()
    given["provider"] = {"type": "local", "coordinator_address": "10.0.0.1:8000"}
    (mistake,) = check_cluster(given).mistakes
    assert "max_workers: missing" in mistake
    given["max_workers"] = 2
    assert ray_accepts(given)
    assert check_cluster(given).mistakes == []


def test_the_command_prints_all_mistakes_a_line_each_and_exits_with_2(tmp_path: Path) -> None:
    given = config()
    given["provider"]["worker_ip"] = []
    start(given, "head", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(given))
    result = CliRunner().invoke(main, ["check-cluster", str(path)])
    assert result.exit_code == 2
    assert [line.startswith(f"{path}: ") for line in result.stderr.splitlines()] == [True, True]
    assert "ok" not in result.stdout
    good = CliRunner().invoke(main, ["check-cluster", str(SHIPPED)])
    assert good.exit_code == 0
    assert good.stdout.splitlines()[-1] == f"{SHIPPED}: ok"


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "cannot read"), ("a: [b\n", "not valid YAML"), ("- a\n", "mapping"), ("", "mapping")],
)
def test_what_is_no_cluster_file_is_refused_in_one_line(content: str | None, named: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    result = CliRunner().invoke(main, ["check-cluster", str(path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert named in result.stderr


# The recipe for Slurm beside it.


# Slurm's commands for one node: the options of srun are its own, the rest is what it runs.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = "#!/bin/bash\necho 127.0.0.1\n"
# symmetric-run refuses a machine where any Ray runs, and ends all that it finds: it gets one of its own.
MACHINE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
START = 'ip link set lo up && exec bash "$@"'


def sbatch(place: Place, *arguments: object) -> Running:
    """The Slurm script as Slurm would run it on one node without GPUs."""
    stubs = place.folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    (place.folder / "venv" / "bin").mkdir(parents=True, exist_ok=True)
    (place.folder / "venv" / "bin" / "activate").write_text(
        f"export PATH={Path(sys.executable).parent}:{stubs}:$PATH\n"
    )
    environment = place.environment() | {
        "SUPERFT_SHARED": str(place.folder),
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NNODES": "1",
        "RAY_TMPDIR": str(place.temporary),
    }
    out, err = (place.folder / f"{len(list(place.folder.glob('*.log')))}.{name}.log" for name in ("out", "err"))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [*MACHINE, "sh", "-c", START, "sh", str(ROOT / "cluster" / "slurm.sbatch"), *map(str, arguments)],
            env=environment,
            cwd=place.folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    return Running(process, out, err)


def has_namespaces() -> bool:
    found = all(shutil.which(name) for name in ("unshare", "ip"))
    return found and subprocess.run([*MACHINE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_the_slurm_script_runs_stops_in_order_at_the_limit_and_continues(tmp_path: Path) -> None:
    if not has_namespaces():
        pytest.skip("the system allows no namespaces")
    with new_place(tmp_path) as place:
        search = {**TINY["search"], "trials": 14, "ranges": {"super_ft": {"iterations": [500, 2000]}}}
        spec, out = place.spec(search=search), tmp_path / "out"
        first = sbatch(place, spec, "--out", out)
        wait_for(lambda: len(rows_of(out)) >= 2, 240, lambda: first.stdout.read_text() + first.stderr.read_text())
        # Slurm signals the script alone (--signal=B:TERM); it is the first process of its machine.
        children = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        stopped = first.end()
        assert stopped.code == 130, stopped.stdout + stopped.stderr
        assert "trials; the same command continues the study" in stopped.stderr
        assert (out / "report.html").is_file()
        before = rows_of(out)
        assert 2 <= len(before) < 15, "the study was over before it was stopped: make it longer"
        again = sbatch(place, spec, "--out", out).end()
        assert again.code == 0, again.stdout + again.stderr
        assert rows_of(out)[: len(before)] == before
        assert len({row["trial"] for row in rows_of(out)}) == len(rows_of(out)) == 15
        place.wait_until_alone()
