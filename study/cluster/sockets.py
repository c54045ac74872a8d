"""A folder for a Ray of our own whose path is short enough for the sockets that Ray puts into it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from study.record.temporary import NAME_BYTES
from study.spec.yaml_io import SpecError

log = logging.getLogger("superft.engine")

# The kernel's limit for the path of a Unix socket: 108 bytes on Linux, 104 on macOS, the last one a zero.
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
# Ray opens its own folder to everybody (mode 0777), so that lies in one that is open to its owner alone.
RAY_FOLDER = "r"
# Tried with Ray 2.59: its longest socket is FOLDER/session_2026-11-28_15-43-44_254552_12854/sockets/plasma_store. With
# a folder of 45 bytes (107 in all) Ray starts, with 46 it raises OSError. A process number has up to seven digits.
SOCKET_IN_FOLDER = len(f"/{RAY_FOLDER}/session_2026-11-28_15-43-44_254552_1234567/sockets/plasma_store")
LONGEST_PLACE = LONGEST_SOCKET - SOCKET_IN_FOLDER - NAME_BYTES  # 28 bytes on Linux, 24 on macOS


def place_for_sockets() -> Path:
    """Where the folder of a Ray of our own can lie: in TMPDIR, or if its path is too long, in a short place instead.

    Which one it is instead is said in a line of the log. Ray's folder lies in one that is open to its owner alone
    (`temporary.scratch_folder`).

    Raises:
        SpecError: no place is short enough.
    """
    wanted = Path(tempfile.gettempdir())
    if _is_short(wanted):
        return wanted
    for place in _short_places():
        if _is_short(place) and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            log.warning(
                "Ray's files lie in %s: the path of the temporary folder (TMPDIR), %s, has %d bytes, and Ray's sockets "
                "allow %d",
                place,
                wanted,
                len(os.fsencode(wanted)),
                LONGEST_PLACE,
            )
            return place
    raise SpecError(
        f"TMPDIR={wanted} is too long for Ray's sockets and no shorter folder can be written to: set TMPDIR to "
        f"a folder of yours whose path has at most {LONGEST_PLACE} bytes"
    )


def _short_places() -> Iterator[Path]:
    """Places to try, disks before memory; the user's own ones last, since a home may lie on a network's disk."""
    yield Path("/tmp")
    yield Path("/var/tmp")
    for key in ("XDG_RUNTIME_DIR", "HOME"):
        if (value := os.environ.get(key, "")).startswith("/"):
            yield Path(value)


def _is_short(place: Path) -> bool:
    return len(os.fsencode(place)) <= LONGEST_PLACE
