"""Several machines for tests on one: each a network, a process space, folders and an sshd of its own, on one bridge."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.study.processes import ROOT, Finished, wait_for

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "ip", "mount")
SERVERS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
OF_ITS_OWN = ["--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child"]
NETWORK = "10.77.0"  # of a bridge that leads nowhere
SHARED = "/mnt/superft"
SSHD = """\
ListenAddress {address}
HostKey /root/.ssh/host_key
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""
# Everything that two machines would otherwise share is covered up: /tmp (Ray's sessions, ssh's sockets), the home, the
# shared memory. What the tests run from is put back, should it lie under one of these.
BOOT = """\
set -e
folder=$1 name=$2 address=$3 shared=$4; shift 4
hostname "$name"
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run && mkdir /run/sshd
mount -t tmpfs none /mnt
[ -z "$shared" ] || { mkdir /mnt/superft && mount --bind "$shared" /mnt/superft; }
number=0
for kept; do mkdir -p "/mnt/kept/$number" && mount --rbind "$kept" "/mnt/kept/$number"; number=$((number + 1)); done
mount --bind "$folder/home" /root
mount --bind "$folder/tmp" /tmp
number=0
for kept; do mkdir -p "$kept" && mount --rbind "/mnt/kept/$number" "$kept"; number=$((number + 1)); done
ip link set lo up
until ip link set eth0 up 2> /dev/null; do sleep 0.05; done
ip address add "$address/24" dev eth0
ip route add default via 10.77.0.254
exec /usr/sbin/sshd -D -e -f /root/.ssh/sshd_config
"""


def missing() -> str | None:
    """Why no machines can be made here, in one line; None where they can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SERVERS) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: openssh-server, rsync)"
    if os.geteuid() != 0:
        return "machines of the tests are made by root"
    tried = subprocess.run(
        [
            "unshare",
            *OF_ITS_OWN,
            "sh",
            "-c",
            "ip link add one type bridge && ip link add two type veth peer name three",
        ],
        env=os.environ | {"PATH": SERVERS},
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else "the system allows no machines of the tests' own (namespaces, bridges)"


@dataclass
class Machine:
    """A running machine."""

    name: str
    address: str
    folder: Path
    unshare: subprocess.Popen[bytes]
    first: int  # its first process (sshd), as this process sees it

    def command(self, words: Sequence[object]) -> list[str]:
        inside = ["nsenter", f"--target={self.first}", "--net", "--pid", "--mount", "--uts", "--wdns=/root"]
        return [*inside, *map(str, words)]

    def call(self, *words: object, timeout: float = 120, **environment: str) -> Finished:
        """A command on this machine, to its end."""
        done = subprocess.run(
            self.command(words),
            env=clean_environment() | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def processes(self) -> dict[int, str]:
        """Ids and command lines of all that runs here, but for its sshd."""
        space = os.readlink(f"/proc/{self.first}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.first:
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns" / "pid") == space:
                        line = (entry / "cmdline").read_text().replace("\0", " ").strip()
                        if line:  # else it is over
                            found[int(entry.name)] = line[:200]
        return found

    def crash(self) -> None:
        """All that runs here is gone at once, and its sshd takes new connections: as after a loss of power."""
        for number in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def home(self, name: str) -> Path:
        """A file in the home of its user, as this process sees it."""
        return self.folder / "home" / name

    def end(self) -> None:
        self.unshare.kill()  # takes the first process with it, and that one all others
        self.unshare.wait(30)


def clean_environment() -> dict[str, str]:
    """What a login gives, and no more: nothing of the tests' own."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8", "USER": "root"}


@dataclass
class Site:
    """Machines on one bridge; ``shared`` is the folder that all see as /mnt/superft."""

    folder: Path
    shared: Path
    bridge: subprocess.Popen[bytes]
    machines: dict[str, Machine] = field(default_factory=dict)

    def add(self, name: str, sees_shared: bool = True) -> Machine:
        """Another machine, whose sshd answers when this returns; the site's key opens it, and lies on it."""
        folder = self.folder / name
        address = f"{NETWORK}.{len(self.machines) + 1}"
        (folder / "tmp").mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        ssh = folder / "home" / ".ssh"
        ssh.mkdir(parents=True)
        (folder / "home").chmod(0o700)
        for file in ("id_ed25519", "id_ed25519.pub"):
            shutil.copy2(self.folder / file, ssh / file)
        shutil.copy2(self.folder / "id_ed25519.pub", ssh / "authorized_keys")
        new_key(ssh / "host_key")
        (ssh / "sshd_config").write_text(SSHD.format(address=address))
        kept = sorted({str(ROOT), sys.prefix, sys.base_prefix})
        arguments = [folder, name, address, self.shared if sees_shared else "", *kept]
        into = f"--net=/proc/{self.bridge.pid}/ns/net"
        with (folder / "log").open("wb") as log:
            unshare = subprocess.Popen(
                ["nsenter", into, "unshare", *OF_ITS_OWN, "bash", "-c", BOOT, "bash", *map(str, arguments)],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        wait_for(lambda: bool(children.read_text().split()), 10, lambda: (folder / "log").read_text())
        first = int(children.read_text().split()[0])
        self.machines[name] = machine = Machine(name, address, folder, unshare, first)
        for words in (
            ["link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(first)],
            ["link", "set", f"to-{name}", "master", "bridge", "up"],
        ):
            subprocess.run(["nsenter", into, "ip", *words], env=clean_environment(), check=True)
        wait_for(lambda: "listening on" in (folder / "log").read_text(), 10, lambda: (folder / "log").read_text())
        return machine


def new_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextlib.contextmanager
def new_site(folder: Path) -> Iterator[Site]:
    """A site without machines yet, with a virtual environment in its shared folder; all is gone in the end."""
    shared = folder / "shared"
    (shared / "venv" / "bin").mkdir(parents=True)
    (shared / "venv" / "bin" / "activate").write_text(
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n"
    )
    new_key(folder / "id_ed25519")
    script = "ip link set lo up && ip link add bridge type bridge && ip address add 10.77.0.254/24 dev bridge && "
    bridge = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script + "ip link set bridge up && echo up && exec sleep infinity"],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    site = Site(folder, shared, bridge)
    try:
        assert bridge.stdout is not None
        assert bridge.stdout.readline() == b"up\n"
        yield site
    finally:
        for machine in site.machines.values():
            machine.end()
        bridge.kill()
        bridge.wait(30)
