"""Fetching one published file: with progress, going on where an earlier attempt stopped, checked before it counts.

torchvision's own download begins again each time, and leaves a half file under its final name.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainables.data.images import DataError
from trainables.storage.files import locked
from trainables.storage.messages import one_line

CHUNK = 2**18
ANSWER_SECONDS = 60.0  # of a server that says nothing
MOST_STOPS = 5  # in a row, without a byte in between
AGENT = {"User-Agent": "superft"}  # some servers refuse urllib's own

# (name of the file, bytes that are there, bytes in all; None: the server does not say)
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Archive:
    """A published file.

    Args:
        url: of it.
        path: below the root of data files, where the data set's reader looks for it.
        md5: its published checksum.
    """

    url: str
    path: str
    md5: str


def fetch_archive(archive: Archive, root: Path, progress: Progress) -> bool:
    """Make sure that the file is there; False: it was.

    It is written as ``.NAME.part`` beside its place, and renamed once its checksum is right.

    Raises:
        DataError: in one line: it cannot be reached or written, or is not what was published.
    """
    target = root / archive.path
    try:
        with locked(target.with_name(f".{target.name}"), required=False):  # two on one machine fetch it once
            return _fetch(archive, target, progress)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({getattr(error, 'strerror', None) or one_line(error)})"
        ) from error


def _fetch(archive: Archive, target: Path, progress: Progress) -> bool:
    if target.is_file() and _md5(target) == archive.md5:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    stops = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _go_on(archive, part, progress)
            break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            have = part.stat().st_size if part.exists() else 0
            stops = 0 if have > before else stops + 1
            # An answer that says no will say so again.
            if stops >= MOST_STOPS or isinstance(error, urllib.error.HTTPError) or have == 0:
                kept = f"; {have} bytes are there, and the same command goes on from them" if have else ""
                why = one_line(getattr(error, "reason", None) or error)
                raise DataError(f"{archive.url}: {why}{kept}") from error
    if (found := _md5(part)) != archive.md5:
        part.unlink()
        raise DataError(
            f"{archive.url}: what came is not what was published (md5 {found}, not {archive.md5}), and was deleted; "
            "try again, or get the file elsewhere and put it there"
        )
    os.replace(part, target)
    return True


def _go_on(archive: Archive, part: Path, progress: Progress) -> None:
    """Append what is missing; from the beginning where the server cannot do otherwise."""
    have = part.stat().st_size if part.exists() else 0
    asked = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(archive.url, headers={**AGENT, **asked})
    try:
        answer = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # all of it is there, or something else: its checksum tells
        raise
    with answer:
        began = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT or began is None or int(began[1]) != have:
            have = 0
        total = None if answer.length is None else have + answer.length
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise DataError(f"{archive.url}: {total - have} bytes are to come, and {part.parent} has room for {free}")
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(Path(archive.path).name, have, total)
        if total is not None and have < total:
            raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:  # what the publishers give; it guards against accidents
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
