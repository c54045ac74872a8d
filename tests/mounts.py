"""Small file systems for tests, in a mount namespace of their own: nobody else sees them, and they end with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Mounts:
    """A mount namespace, which lives as long as process ``pid`` of it does."""

    pid: int

    @property
    def inside(self) -> tuple[str, ...]:
        """In front of a command: runs it there."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wd={os.getcwd()}")

    def mount(self, folder: Path, size: str, *, again: bool = False) -> None:
        """A file system of ``size`` (as ``28k``) at ``folder``; ``again``: another size for one that is there."""
        options = f"{'remount,' * again}size={size}"
        subprocess.run([*self.inside, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

    def seen(self, folder: Path) -> Path:
        """Where this process finds what ``folder`` is in there."""
        return Path(f"/proc/{self.pid}/root{folder}")


@contextmanager
def own_mounts() -> Iterator[Mounts]:
    """A new namespace; skips the test, with the reason, where there can be none."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "mount"))):
        pytest.skip("small file systems need root and util-linux")
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec sleep infinity"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        if keeper.stdout.readline() != b"there\n":  # a container may be forbidden to
            pytest.skip(f"no mount namespace here: {keeper.stderr.read().decode().strip()}")
        yield Mounts(keeper.pid)
    finally:
        keeper.kill()
        keeper.wait()
