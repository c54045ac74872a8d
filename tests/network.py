"""A network of their own for the tests: what listens on all interfaces (Ray does) is heard by nobody else."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# Ray's workers take ports up to 19999, and Linux gives those from 32768 on to whoever does not name one.
PORTS = range(20000, 32000)
_turns = itertools.count(97 * os.getpid())  # two runs of pytest on one machine begin in different places


def leave_the_network() -> bool:
    """Move the calling thread, and all that it starts from now on, into a new network that has loopback alone.

    Linux, and only root may; elsewhere it does nothing and returns False.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.name != "posix" or os.geteuid() != 0 or not hasattr(libc, "unshare"):
        return False
    if libc.unshare(CLONE_NEWNET) != 0:  # a container may be forbidden to
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
    return True


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now, and that nobody is given until their server listens.

    Neither the system nor Ray hands them out, no other worker of pytest draws from them, and this one none twice until
    all were drawn.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    found: list[int] = []
    for _ in mine:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = mine[next(_turns) % len(mine)]
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"of {len(mine)} ports {len(found)} are free, not {count}")
