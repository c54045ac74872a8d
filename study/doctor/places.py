"""Looks at where things lie: the store, the data sets, free disk, temporary files."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from study.doctor.finding import GIGABYTE, Finding, Options, gigabytes
from study.spec.yaml_io import SpecError
from trainables.storage.messages import one_line

# A victim of 11 million weights takes 45 MB, a decoded CIFAR-10 180 MB, a cloned environment some GB.
LEAST_FREE, LITTLE_FREE = 1 * GIGABYTE, 10 * GIGABYTE


def look_at_store(options: Options) -> Finding:
    """Whether victims can be kept."""
    from study.record.folder import check_store
    from trainables.storage.remote import RemoteError
    from trainables.storage.remote_store import open_store

    facts = {"store": options.store}
    try:
        store = open_store(options.store)
        facts["store"] = str(store.where)
        check_store(store)
    except SpecError as error:
        says, _, todo = str(error).removeprefix("--store ").rpartition("; ")
        return Finding("fail", says, todo, facts)
    except RemoteError as error:
        return Finding("fail", one_line(error), "name another store, or set SUPERFT_STORE", facts)
    return Finding("ok", f"{store.where} can be written", facts=facts)


def look_at_data(_: Options) -> Finding:
    """Which data sets are on this machine. Files are looked for, not read."""
    from trainables.data.images import DataError
    from trainables.data.load import default_root
    from trainables.data.sources.base import SOURCES

    root, named = default_root(), os.environ.get("SUPERFT_DATA")
    facts: dict[str, object] = {"root": str(root)}
    if named and not root.is_dir():
        return Finding("fail", f"SUPERFT_DATA={named} is no folder", "make it, or unset SUPERFT_DATA", facts)
    if root.exists() and not os.access(root, os.R_OK | os.X_OK):
        return Finding("fail", f"{root} cannot be read", "set SUPERFT_DATA to a folder of yours", facts)
    here, halves, unknown, broken = [], [], [], []
    for name, source in SOURCES.items():
        if source.files is None:
            unknown.append(name)
        elif not source.files:
            try:
                source.read(source.image_size, root, False)
            except (ImportError, DataError) as error:
                broken.append(f"{name} ({one_line(error)})")
            else:
                here.append(name)
        else:
            missing = [pattern for pattern in source.files if next(root.glob(pattern), None) is None]
            if not missing:
                here.append(name)
            elif len(missing) < len(source.files):
                halves.append(f"{name} (no {missing[0]})")
    facts |= {"here": here, "incomplete": halves, "unknown": unknown, "broken": broken}
    says = f"{', '.join(here) or 'none'} here; others are looked for in {root}"
    if broken:
        return Finding(
            "fail", f"{', '.join(broken)} needs no files and cannot be read", "pip install scikit-learn", facts
        )
    if halves:
        todo = f"fetch again with --download, or unpack again: a study of it would stop; {root}"
        return Finding("warn", f"{says}; incomplete: {', '.join(halves)}", todo, facts)
    return Finding("ok", f"{says} (--download fetches most of them)", facts=facts)


def look_at_disk(options: Options) -> Finding:
    """Free space where studies, victims, data and temporary files go."""
    from trainables.data.load import default_root
    from trainables.storage.remote import is_uri
    from trainables.storage.store import default_store

    store = options.store or str(default_store())
    places = {"working folder": Path.cwd(), "data": default_root(), "temporary files": Path(tempfile.gettempdir())}
    if not is_uri(store):
        places["store"] = Path(store).expanduser()
    free: dict[str, int] = {}
    by_disk: dict[int, tuple[Path, list[str]]] = {}
    for name, place in places.items():
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        by_disk.setdefault(there.stat().st_dev, (there, []))[1].append(name)
        free[name] = shutil.disk_usage(there).free
    facts = {"free_bytes": free}
    disks = [(min(free[name] for name in names), there, " and ".join(names)) for there, names in by_disk.values()]
    says = "; ".join(f"{gigabytes(size)} free for {names}" for size, _, names in disks)
    size, there, names = min(disks, key=lambda disk: disk[0])
    todo = f"make room on the disk of {there}, or place {names} elsewhere (--out, SUPERFT_STORE, SUPERFT_DATA, TMPDIR)"
    if size < LEAST_FREE:
        return Finding("fail", says, todo, facts)
    if not os.access(Path.cwd(), os.W_OK):
        return Finding(
            "warn", f"{says}; {Path.cwd()} cannot be written", "start studies in another folder, or name --out", facts
        )
    return Finding("warn" if size < LITTLE_FREE else "ok", says, todo if size < LITTLE_FREE else "", facts)


def look_at_tmpdir(options: Options) -> Finding:
    """Whether temporary files have a place, and Ray's sockets one with a short path."""
    from study.cluster.sockets import LONGEST_PLACE, place_for_sockets

    named = os.environ.get("TMPDIR")
    try:
        wanted = Path(tempfile.gettempdir())
        place = place_for_sockets()
    except FileNotFoundError as error:
        return Finding("fail", one_line(error), "set TMPDIR to a folder that you can write to")
    except SpecError as error:
        says, _, todo = str(error).partition(": ")
        return Finding("fail", says, todo, {"tmpdir": str(wanted)})
    length = len(os.fsencode(wanted))
    facts = {"tmpdir": str(wanted), "bytes": length, "most_bytes": LONGEST_PLACE, "sockets_in": str(place)}
    if named and Path(named).absolute() != wanted.absolute():
        return Finding(
            "warn", f"TMPDIR={named} cannot be used, {wanted} is", "make that folder, or unset TMPDIR", facts
        )
    if place != wanted:
        says = f"{wanted} has {length} bytes and Ray's sockets allow {LONGEST_PLACE}: they go to {place}"
        return Finding("warn", says, "nothing to do, or set TMPDIR to a short path", facts)
    return Finding("ok", f"{wanted}, {length} bytes of at most {LONGEST_PLACE}", facts=facts)
