"""A real Slurm of one node for tests: munged, slurmctld and slurmd, in a process space and a network of their own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.study.processes import Place, wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "unshare", "nsenter", "ip")
# `ray stop` ends all Ray processes that its user sees: the node sees its own alone, and they end with their first one.
SPACE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin={task}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobAcctGatherType=jobacct_gather/none
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
# Slurm looks names up with AI_ADDRCONFIG, which finds nothing where the only address is 127.0.0.1.
START = """\
ip link set lo up
ip address add 127.0.0.2/8 dev lo
munged --foreground --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munge.pid" \
    --log-file="$1/munge.log" --seed-file="$1/munge.seed" &
until [ -S "$1/munge.socket" ]; do sleep 0.1; done
slurmctld -D -f "$1/slurm.conf" &
slurmd -D -N localhost -f "$1/slurm.conf" &
wait
"""


def missing() -> str | None:
    """Why no Slurm can be started here, in one line; None where it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "a Slurm of the tests is started by root"
    allowed = subprocess.run([*SPACE, "true"], capture_output=True, check=False).returncode == 0
    return None if allowed else "the system allows no process space of its own"


def search_path() -> str:
    """PATH with the folders of a system's servers."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


@dataclass
class Ended:
    """A job that is over: Slurm's word for how, the exit code of its script, and what it said."""

    state: str
    code: int
    log: str


@dataclass
class Slurm:
    """The running Slurm; ``place`` holds its jobs' files."""

    folder: Path
    place: Place
    first: int = 0  # the process that holds the node's network

    def environment(self) -> dict[str, str]:
        return self.place.environment(plug_in=True) | {
            "PATH": search_path(),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "SUPERFT_SHARED": str(self.place.folder),
            "RAY_TMPDIR": str(self.place.temporary),
        }

    def call(self, *words: object) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, to its end."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.first}/ns/net", *map(str, words)],
            env=self.environment(),
            cwd=self.place.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def submit(self, *words: object) -> str:
        """`sbatch WORDS`; the job's number."""
        asked = self.call("sbatch", "--parsable", *words)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        return asked.stdout.strip()

    def log(self, job: str) -> str:
        path = self.place.folder / f"superft-{job}.log"
        return path.read_text() if path.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by key."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", job).stdout))

    def is_over(self, job: str) -> bool:
        return self.show(job).get("JobState") in OVER

    def end(self, job: str, seconds: float = 240) -> Ended:
        """Wait until the job is over."""
        wait_for(lambda: self.is_over(job), seconds, lambda: f"{self.show(job)}\n{self.log(job)}", 0.5)
        shown = self.show(job)
        return Ended(shown["JobState"], int(shown["ExitCode"].split(":")[0]), self.log(job))


@contextlib.contextmanager
def new_slurm(place: Place, cpus: int, task: str = "task/none") -> Iterator[Slurm]:
    """A Slurm whose node, named localhost, has so many CPUs and no GRES; its processes are gone in the end."""
    folder = place.temporary / "slurm"
    for name in ("", "state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), folder=folder, cpus=cpus, task=task))
    slurm = Slurm(folder, place)
    with (folder / "daemons.log").open("wb") as said:
        daemons = subprocess.Popen(
            [*SPACE, "bash", "-c", START, "bash", str(folder)],
            env=slurm.environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    slurm.first = daemons.pid
    try:
        wait_for(
            lambda: "idle" in slurm.call("sinfo", "--noheader", "--format=%T").stdout.split(),
            60,
            lambda: (folder / "daemons.log").read_text()[-3000:],
            0.3,
        )
        yield slurm
    finally:
        daemons.kill()  # unshare takes the first process of the space with it, and that one all others
        daemons.wait(30)
