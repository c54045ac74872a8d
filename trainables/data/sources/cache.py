"""Decoded images, kept as one checked uint8 file per set and size."""

import hashlib
import importlib.util
import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainables.data.images import DataError, ImageSet, fingerprint_of
from trainables.data.sources.base import Raw
from trainables.storage.files import locked, save_tensors
from trainables.storage.messages import one_line

logger = logging.getLogger(__name__)

SCHEMA = "2"  # 2: transparent images on white; remarks


def cached(label: str, size: int, root: Path, stamp: str, read: Callable[[], Raw]) -> Raw:
    """``read()``, or what it returned before for the same stamp and size.

    The file holds uint8 pixels and labels (safetensors), is written aside and renamed, and is checked whole when it is
    loaded: a damaged one is named and made again. A folder that cannot be written costs the decoding at each start.
    """
    if importlib.util.find_spec("safetensors") is None:
        logger.info("%s: decoded images are not kept, since safetensors is not installed", label)
        return read()
    key = hashlib.sha256(f"{SCHEMA}\0{label}\0{size}\0{stamp}".encode()).hexdigest()[:20]
    path = root / "decoded" / f"{label}-{size}-{key}.safetensors"
    if raw := _load_decoded(path):
        return raw
    with locked(path, required=False):
        raw = _load_decoded(path) if path.exists() else None  # another process may have made it meanwhile
        return raw or _store_decoded(path, read())


def _load_decoded(path: Path) -> Raw | None:
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open  # here: see `files.save_tensors`

    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata()
            train, test = (
                ImageSet(file.get_tensor(f"{part}_images"), file.get_tensor(f"{part}_labels"))
                for part in ("train", "test")
            )
        fingerprint = fingerprint_of(train, test)
        if meta["checksum"] != _checksum(fingerprint, meta["classes"], meta["remarks"]):
            raise DataError("checksum differs")
        classes, remarks = tuple(json.loads(meta["classes"])), json.loads(meta["remarks"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("decoded images %s are damaged or unreadable (%s): decoding again", path, one_line(error))
        with suppress(OSError):  # a folder that cannot be written; then it is only read again and again
            path.unlink()
        return None
    return Raw(train, test, classes, fingerprint, None if remarks is None else tuple(remarks))


def _store_decoded(path: Path, raw: Raw) -> Raw:
    fingerprint = fingerprint_of(raw.train, raw.test)
    raw = Raw(raw.train, raw.test, raw.classes, fingerprint, raw.remarks)
    from safetensors import SafetensorError

    tensors = {
        "train_images": raw.train.images.contiguous(),
        "train_labels": raw.train.labels.contiguous(),
        "test_images": raw.test.images.contiguous(),
        "test_labels": raw.test.labels.contiguous(),
    }
    classes, remarks = json.dumps(raw.classes), json.dumps(raw.remarks)
    metadata = {"classes": classes, "remarks": remarks, "checksum": _checksum(fingerprint, classes, remarks)}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, aside, metadata)
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:  # SafetensorError: how save_file reports a full disk
        logger.warning("decoded images were not kept in %s (%s)", path.parent, one_line(error))
        if aside.exists():
            aside.unlink()
    return raw


def _checksum(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
