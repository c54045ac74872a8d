"""Staging: a data set fetched, unpacked, checked and decoded before any study asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainables.data.archives import Progress, fetch_archive
from trainables.data.images import DataError, Dataset
from trainables.data.load import load_dataset, unknown
from trainables.data.sources.base import SOURCES
from trainables.data.sources.folders import FOLDER


def check_fetchable(name: str) -> None:
    """Refuse what cannot be fetched (DataError): one's own folder, an unknown name, a set that nobody serves so."""
    if name.startswith(FOLDER):
        raise DataError(f"{name} is a folder of your own; there is nothing to fetch")
    if name not in SOURCES:
        raise DataError(unknown(name))
    source = SOURCES.get(name)
    if source.archives is None and source.files != ():
        raise DataError(f"{name} is not fetched: {source.description}")


def stage(name: str, root: Path, say: Callable[[str], None], progress: Progress) -> Dataset:
    """The data set, which is then below ``root`` with all that its reader needs.

    Args:
        name: of a registered data set.
        root: folder of data files.
        say: takes a line on what was there, or was fetched.
        progress: is told of bytes.

    Raises:
        DataError: in one line.
    """
    check_fetchable(name)
    source = SOURCES.get(name)
    if source.files and all(any(root.glob(pattern)) for pattern in source.files):
        say(f"{name}: there already")
    else:
        for archive in source.archives() if source.archives is not None else ():
            new = fetch_archive(archive, root, progress)
            say(f"{name}: {Path(archive.path).name} {'fetched, checksum right' if new else 'there already'}")
    dataset = load_dataset(name, root=root, download=source.archives is not None)
    where = f"ready in {root}" if root.exists() else "ready without files"
    say(f"{name}: {where}: {len(dataset.train)} training and {len(dataset.test)} test images")
    return dataset
