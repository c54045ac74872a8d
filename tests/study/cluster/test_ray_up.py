"""`ray up` with the file of `superft cluster-file`, over real ssh: up, a study, a worker that dies, and down again."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.study.cluster.machines import SHARED, Machine, Site, missing, new_key, new_site
from tests.study.processes import ROOT, Finished, rows_of, wait_for
from tests.study.tiny import TINY

pytestmark = pytest.mark.cluster
PYTHON = sys.executable
RAY = str(Path(sys.executable).parent / "ray")
TOKEN = f"{SHARED}/ray_token"
# Ray's own patience, for a machine on which several nodes start at once; and how long a dead one is waited for: its
# own 30 and 60 s make the test longer and show nothing more.
PATIENCE = """\
export RAY_agent_register_timeout_ms=120000 RAY_raylet_start_wait_time_s=120
export AUTOSCALER_HEARTBEAT_TIMEOUT_S=15 RAY_gcs_rpc_server_reconnect_timeout_s=15
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site with a token, and a machine from which people start things."""
    if why := missing():
        pytest.skip(why)
    with new_site(tmp_path) as site:
        (site.shared / "ray_token").write_text(secrets.token_hex(32))
        (site.shared / "ray_token").chmod(0o600)
        site.add("desk")
        yield site


def node(site: Site, name: str, sees_shared: bool = True) -> Machine:
    machine = site.add(name, sees_shared)
    (machine.folder / "home" / ".bashrc").write_text(PATIENCE)
    return machine


def superft(site: Site, *words: object, timeout: float = 60, **environment: str) -> Finished:
    desk = site.machines["desk"]
    return desk.call(PYTHON, "-m", "study.cli", *words, timeout=timeout, PYTHONPATH=str(ROOT), **environment)


def write_file(site: Site, head: Machine, *workers: Machine) -> None:
    """`superft cluster-file`, called where people would."""
    options = {
        "head": head.address,
        "workers": ",".join(worker.address for worker in workers),
        "gpus": "0",
        "shared": SHARED,
        "user": "root",
        "key": "~/.ssh/id_ed25519",
    }
    written = superft(site, "cluster-file", *(word for key in options for word in (f"--{key}", options[key])))
    assert written.code == 0, written.stderr


def up(site: Site) -> Finished:
    return site.machines["desk"].call(RAY, "up", "site.yaml", "-y", timeout=200)


def ray_status(site: Site) -> str:
    """`ray status` on the head, by the launcher: neither an environment nor a token is named."""
    return site.machines["desk"].call(RAY, "exec", "site.yaml", "ray status", timeout=100).stdout


def active(site: Site) -> int:
    """How many nodes `ray status` calls active or idle."""
    shown = ray_status(site)
    nodes = shown.partition("Active:")[2].partition("Pending:")[0]
    return sum(int(line.split()[0]) for line in nodes.splitlines() if line.strip()[:1].isdigit())


def said_on(machine: Machine) -> str:
    """The autoscaler's log, for what an assertion shows."""
    logs = machine.folder.glob("tmp/ray/session_2*/logs/monitor*")
    return "".join(path.read_text(errors="replace")[-3000:] for path in logs)


def test_a_cluster_comes_up_runs_a_study_heals_and_goes_down(site: Site) -> None:
    head, *workers = (node(site, name) for name in ("head", "one", "two"))
    write_file(site, head, *workers)
    started = up(site)
    assert started.code == 0, started.stdout[-3000:] + started.stderr[-3000:]
    wait_for(lambda: active(site) == 3, 120, lambda: ray_status(site) + said_on(head), 1)

    # A worker whose Ray is gone at once, as with its power; the launcher starts it again.
    before = workers[0].processes()
    workers[0].kill_all("/ray/")
    wait_for(lambda: any("raylet" in line for line in new(workers[0], before)), 120, lambda: said_on(head), 1)
    assert "No recent heartbeat" in said_on(head)
    wait_for(lambda: active(site) == 3, 60, lambda: ray_status(site), 1)

    cores = os.cpu_count()
    spec = {**TINY, "search": {**TINY["search"], "trials": 2}, "resources": {"cpus_per_trial": cores}}
    (head.folder.parent / "desk" / "home" / "tiny.yaml").write_text(yaml.safe_dump(spec))
    with tunnel(site, head):
        submit = ["submit", "tiny.yaml", "--out", f"{SHARED}/studies/one", "--follow"]
        refused = superft(site, *submit, RAY_AUTH_TOKEN=secrets.token_hex(32))
        assert refused.code == 2
        assert "token" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert not (site.shared / "studies").exists()
        ran = superft(site, *submit, timeout=240, RAY_AUTH_TOKEN_PATH=TOKEN)
    assert ran.code == 0, ran.stdout[-3000:] + ran.stderr
    assert len(rows_of(site.shared / "studies" / "one")) == 3
    assert (site.shared / "victims").is_dir(), "what the trials inherit from `ray start`"
    assert "2 nodes" in ran.stdout  # the workers: the head's cores are one too few, with the driver's

    down = site.machines["desk"].call(RAY, "down", "site.yaml", "-y", timeout=100)
    assert down.code == 0
    assert "Exception" not in down.stdout + down.stderr
    for machine in (head, *workers):  # the head at once; workers when they have missed it for long enough
        wait_for(lambda machine=machine: not left(machine), 60, lambda machine=machine: str(left(machine)), 0.5)


def new(machine: Machine, before: dict[int, str]) -> list[str]:
    return [line for number, line in machine.processes().items() if number not in before]


def left(machine: Machine) -> list[str]:
    """What runs on the machine, but for connections of ssh that are being closed."""
    return [line for line in machine.processes().values() if not line.startswith("sshd:")]


class tunnel:
    """`ssh -N -L 8265:127.0.0.1:8265 HEAD` on the desk, as the manual says."""

    def __init__(self, site: Site, head: Machine) -> None:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "ExitOnForwardFailure=yes", "-v"]
        words = ["ssh", *options, "-N", "-L", "8265:127.0.0.1:8265", f"root@{head.address}"]
        self.process = subprocess.Popen(
            site.machines["desk"].command(words), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "Entering interactive session" in line:
                return
        raise AssertionError("no tunnel")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
