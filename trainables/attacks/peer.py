"""A victim that somebody else made, from a file of BackdoorBench's or from a folder of our own exchange format."""

from __future__ import annotations

import functools
from pathlib import Path

from trainables.attacks.peer_file import read_backdoorbench
from trainables.attacks.recorded import PeerVictim
from trainables.attacks.victim_folder import DESCRIPTION, read_folder
from trainables.data.images import DataError
from trainables.storage.messages import one_line


def read_peer(path: str | Path) -> PeerVictim:
    """The victim in a file, or in a folder with a ``victim.json``; read once as long as the file stays as it is.

    Raises:
        DataError: one line: no such file, damaged, parts missing, an architecture that is not known here, or it would
            have to run code.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            path = path / DESCRIPTION
        told = path.stat()
        if not path.is_file():
            raise DataError(f"import {path}: is no file; give an attack_result.pt of BackdoorBench, or a {DESCRIPTION}")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"import {path}: cannot be read ({one_line(error)})") from error
    return _read(path, told.st_mtime_ns, told.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, _changed: int, size: int) -> PeerVictim:
    try:
        return read_folder(path, size) if path.name == DESCRIPTION else read_backdoorbench(path, size)
    except DataError:
        raise
    # A damaged file can hold anything in any place.
    except Exception as error:
        raise DataError(f"import {path}: damaged ({type(error).__name__}: {one_line(error)[:200]})") from error
