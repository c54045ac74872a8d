"""`ray up` with the file of `superft cluster-file`, over real ssh: up, a study, a worker that dies, and down again."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from study.cluster.write_file import Site as OwnSite
from study.cluster.write_file import write_site_file
from tests.study.cluster.machines import NETWORK, SHARED, Machine, Site, missing, new_key, new_site
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
    machine.home(".bashrc").write_text(PATIENCE)
    return machine


def superft(site: Site, *words: object, timeout: float = 240, **environment: str) -> Finished:
    desk = site.machines["desk"]
    return desk.call(PYTHON, "-m", "study.cli", *words, timeout=timeout, PYTHONPATH=str(ROOT), **environment)


def ray(site: Site, command: str, *words: str) -> Finished:
    """`ray COMMAND site.yaml WORDS` on the desk."""
    return site.machines["desk"].call(RAY, command, "site.yaml", *words, timeout=400)


def ray_status(site: Site) -> str:
    """`ray status` on the head, by the launcher: neither an environment nor a token is named."""
    return ray(site, "exec", "ray status").stdout


def active(site: Site) -> int:
    """How many nodes `ray status` calls active or idle."""
    nodes = ray_status(site).partition("Active:")[2].partition("Pending:")[0]
    return sum(int(line.split()[0]) for line in nodes.splitlines() if line.strip()[:1].isdigit())


def said_on(head: Machine) -> str:
    """The autoscaler's logs, from their ends."""
    logs = head.folder.glob("tmp/ray/session_2*/logs/monitor*")
    return "".join(path.read_text(errors="replace")[-5000:] for path in logs)


def left(machine: Machine) -> list[str]:
    """What runs on the machine, but for connections of ssh that are being closed."""
    return [line for line in machine.processes().values() if not line.startswith("sshd:")]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cluster_comes_up_runs_a_study_heals_and_goes_down(site: Site) -> None:
    head, *workers = (node(site, name) for name in ("head", "one", "two"))
    options = {"head": head.address, "workers": ",".join(worker.address for worker in workers), "gpus": "0"}
    options |= {"shared": SHARED, "user": "root", "key": "~/.ssh/id_ed25519"}
    written = superft(site, "cluster-file", *(word for key in options for word in (f"--{key}", options[key])))
    assert written.code == 0, written.stderr
    started = ray(site, "up", "-y")
    assert started.code == 0, started.stdout[-3000:] + started.stderr[-3000:]
    wait_for(lambda: active(site) == 3, 300, lambda: ray_status(site) + said_on(head), 1)

    workers[0].crash()
    wait_for(lambda: "No recent heartbeat" in said_on(head), 120, lambda: said_on(head), 1)
    with tunnel(site, head):  # meanwhile
        site.machines["desk"].home("tiny.yaml").write_text(
            yaml.safe_dump({**TINY, "search": {**TINY["search"], "trials": 2}})
        )
        submit = ["submit", "tiny.yaml", "--out", f"{SHARED}/studies/one", "--follow"]
        refused = superft(site, *submit, RAY_AUTH_TOKEN=secrets.token_hex(32))
        assert refused.code == 2
        assert "RAY_AUTH_TOKEN" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
        assert not (site.shared / "studies").exists()
        ran = superft(site, *submit, timeout=600, RAY_AUTH_TOKEN_PATH=TOKEN)
    assert ran.code == 0, ran.stdout[-3000:] + ran.stderr
    assert len(rows_of(site.shared / "studies" / "one")) == 3
    assert (site.shared / "victims").is_dir(), "SUPERFT_STORE did not reach the trials"
    wait_for(lambda: active(site) == 3, 300, lambda: ray_status(site) + said_on(head), 1)

    down = ray(site, "down", "-y")
    assert down.code == 0
    assert "Exception" not in down.stdout + down.stderr
    assert left(head) == []
    for machine in workers:  # they have to miss the head for long enough
        wait_for(lambda machine=machine: not left(machine), 120, lambda machine=machine: str(left(machine)), 0.5)


def test_a_visit_finds_what_would_keep_the_nodes_away_a_line_each(site: Site) -> None:
    head, good, bare, closed = (node(site, name, name != "bare") for name in ("head", "good", "bare", "closed"))
    closed.home(".ssh/authorized_keys").write_text("")
    nowhere = f"{NETWORK}.99"
    fill_in(site, head.address, good.address, bare.address, closed.address, nowhere)
    found = superft(site, "check-cluster", "site.yaml", "--ssh")
    assert found.code == 2
    lines = [line.split(": ", 2)[1:] for line in found.stderr.splitlines()]
    assert [address for address, _ in lines] == [bare.address, closed.address, nowhere], found.stderr
    assert lines[0][1] == f"{SHARED} is not mounted or not writable"
    assert lines[1][1].startswith("ssh as root: Permission denied (publickey): the public half of ~/.ssh/id_ed25519")
    assert "No route to host" in lines[2][1]


def test_a_wrong_key_is_one_line_and_the_workers_are_not_tried(site: Site) -> None:
    head = node(site, "head")
    new_key(site.machines["desk"].home(".ssh/other"))
    fill_in(site, head.address, f"{NETWORK}.99", key="~/.ssh/other")
    found = superft(site, "check-cluster", "site.yaml", "--ssh")
    assert found.code == 2
    (line,) = found.stderr.splitlines()
    assert f"{head.address}: ssh as root: Permission denied" in line
    assert "~/.ssh/other" in line


def test_a_head_without_the_shared_folder_starts_nothing(site: Site) -> None:
    head, worker = node(site, "head", sees_shared=False), node(site, "one")
    fill_in(site, head.address, worker.address)
    refused = ray(site, "up", "-y")
    assert refused.code != 0
    said = (refused.stdout + refused.stderr).splitlines()
    assert f"{SHARED} is not mounted or not writable" in [line.strip() for line in said]
    assert left(head) == left(worker) == []


def fill_in(site: Site, head: str, *workers: str, key: str = "~/.ssh/id_ed25519") -> None:
    """What `superft cluster-file` writes, without starting it."""
    own = OwnSite(head, workers, gpus=0, shared=SHARED, user="root", key=key)
    write_site_file(own, site.machines["desk"].home("site.yaml"))


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
