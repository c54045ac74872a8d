"""A network of their own for the tests: what listens on all interfaces (Ray does) is heard by nobody else."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


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
    """Ports of loopback that nobody listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for item in held:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in held]
    finally:
        for item in held:
            item.close()
