"""The control groups (cgroup v1, v2) of a process: through them containers and batch systems limit what it may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OWN = Path("/proc/self")


def groups(process: Path, controller: str) -> Iterator[Path]:
    """Folders of every group that limits a process by ``controller``: its own groups and all groups above them.

    Args:
        process: the folder of the process in ``/proc``.
        controller: ``cpu`` or ``memory``; in version 2 all of them lie in one folder.
    """
    for mount, folder in _own_groups(process, controller):
        for group in (folder, *folder.parents):
            yield group
            if group == mount:
                break


def _own_groups(process: Path, controller: str) -> Iterator[tuple[Path, Path]]:
    """Where groups that may limit it are mounted, and the folder of the process's own group there."""
    try:
        own = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or /proc is hidden
        return
    paths = {name: path for _, controllers, path in own for name in controllers.split(",")}
    for line in mounts:
        # "31 23 0:28 ROOT MOUNT options ... - TYPE source options": ROOT is what of the tree is mounted here.
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, options = after.split()[0], after.split()[-1]
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and controller in options.split(","):
            path = paths.get(controller)
        else:
            path = None
        if path is not None:
            yield Path(mount), Path(mount) / _below(path, root)


def _below(path: str, root: str) -> Path:
    """A group's path seen from ``root``. A container may see a group outside of what it mounts: then the top stands."""
    try:
        inside = Path(path).relative_to(root)
    except ValueError:
        return Path()
    return Path() if ".." in inside.parts else inside
