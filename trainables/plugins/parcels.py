"""Plug-ins on their way to other processes: Ray's workers, and the jobs of a cluster.

An installed package is loaded by its name and must be installed there; everything else travels as a copy of its source.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainables.plugins.load import Plugin, load
from trainables.plugins.modules import PluginError

LARGEST = 10 * 2**20  # bytes of a plug-in's source, which is sent to every worker


@dataclass(frozen=True)
class Parcel:
    """A plug-in on its way to a worker: ``content`` is a zip of its source, None where it must be installed there."""

    plugin: Plugin
    content: bytes | None


def packed(plugins: Iterable[Plugin]) -> tuple[Parcel, ...]:
    """The plug-ins for processes on other machines.

    Raises:
        PluginError: the source of one is larger than `LARGEST`.
    """
    return tuple(Parcel(plugin, None if plugin.path is None else _zipped(plugin)) for plugin in plugins)


def files_to_send(plugin: Plugin) -> dict[str, bytes]:
    """What makes up a plug-in that is on this machine alone: path below its parent -> content (PluginError)."""
    assert plugin.path is not None
    place = Path(plugin.path)
    found, size = {}, 0
    for file in [place] if place.is_file() else sorted(place.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            size += file.stat().st_size
            if size > LARGEST:
                raise PluginError(
                    f"plug-in {plugin.module}: {place} holds more than {LARGEST // 2**20} MiB, too much to send to "
                    "workers; install it on all nodes, or keep its data elsewhere"
                )
            found[file.relative_to(place.parent).as_posix()] = file.read_bytes()
    return found


def _zipped(plugin: Plugin) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files_to_send(plugin).items():
            archive.writestr(zipfile.ZipInfo(name), data)  # of 1980: the same bytes for the same content
    return content.getvalue()


def unpack(parcels: Iterable[Parcel]) -> None:
    """Load plug-ins in a worker, the very ones that the driver has.

    Raises:
        PluginError: one cannot be loaded here, or is another version than the driver's.
    """
    for parcel in parcels:
        wanted = parcel.plugin
        path = None if parcel.content is None else _unzipped(parcel.content) / Path(wanted.path or "").name
        known = {"name": wanted.name, "version": wanted.version, "source": wanted.source}
        (here,) = load([{"module": wanted.module, "path": None if path is None else str(path), **known}])
        if here.source != wanted.source:
            raise PluginError(
                f"plug-in {wanted.module}: the driver has {wanted} and this node {here}, other code; "
                "install the same version on all nodes"
            )


def _unzipped(content: bytes) -> Path:
    """The folder with the files of a parcel: one for all processes of this user that got the same."""
    home = Path(tempfile.gettempdir()) / f"superft-plugins-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    state = home.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) & 0o022:
        raise PluginError(f"plug-ins: {home} belongs to somebody else, or others may write to it; remove it")
    folder = home / hashlib.blake2b(content, digest_size=16).hexdigest()
    if not folder.is_dir():
        fresh = Path(tempfile.mkdtemp(dir=home))
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(fresh)
        try:
            fresh.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    return folder
