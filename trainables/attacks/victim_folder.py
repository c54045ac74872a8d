"""Our own exchange format of a victim: a folder with ``victim.json``, ``model.safetensors`` and pictures.

docs/own_models.md describes it. No path stands in it: a picture is named by the place of its original in the clean set,
so that none can lead elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import Kind
from trainables.attacks.recorded import (
    MAX_BYTES,
    MAX_CLASSES,
    MAX_SAMPLES,
    MAX_SIDE,
    PeerVictim,
    Recorded,
    as_tensor,
    check_finite,
    check_test,
    read_png,
    room_for,
)
from trainables.data.images import DataError
from trainables.models.build import MODELS
from trainables.registry import nearest
from trainables.storage.tensor_file import UnsafeTensorFileError, read_tensor_file

DESCRIPTION, WEIGHTS, CLEAN = "victim.json", "model.safetensors", "clean"
TRAIN, TEST = "poisoned_train", "triggered_test"
FORMAT, VERSION = "superft victim", 1
MAX_JSON = 128 * 2**20  # bytes; two million samples are described in half of that
PRECISIONS = ("float32", "bfloat16")
KINDS = {"poison": Kind.POISON, "cross": Kind.CROSS}


def picture(part: str, index: int) -> str:
    """Name within the folder of the picture that was made of image ``index`` of the clean set."""
    return f"{part}/{index:06d}.png"


def pixels_digest(images: Tensor) -> str:
    """SHA-256 of the pixels of uint8 images, (M, 3, H, W), row by row with the channels last."""
    return hashlib.sha256(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest()


def read_folder(path: Path, size: int) -> PeerVictim:
    """The victim that a ``victim.json`` of so many bytes describes; call it through `peer.read_peer`.

    Raises:
        DataError: one line; what a damaged file makes fail elsewhere may raise anything.
    """
    if size > MAX_JSON:
        raise DataError(f"import {path}: {size} bytes are more than the {MAX_JSON} that are read")
    content = path.read_bytes()
    told = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise DataError(f"import {path}: is no {DESCRIPTION} of a victim: its format is not {FORMAT!r}")
    if told.get("version") != VERSION:
        raise DataError(f"import {path}: version {str(told.get('version'))[:20]} is not read; known: {VERSION}")
    digest = hashlib.sha256(content)
    model, dataset = _mapping(path, told, "model"), _mapping(path, told, "dataset")
    if model.get("arch") not in MODELS:
        named = str(model.get("arch"))[:60]
        raise DataError(f"import {path}: model {named!r} is not known here: {nearest(named, MODELS.names())}")
    classes = _whole(path, "model.num_classes", model.get("num_classes"), 2, MAX_CLASSES)
    width = model.get("width")
    if width is not None:
        _whole(path, "model.width", width, 1, 2**16)
    if (precision := model.get("precision")) not in PRECISIONS:
        named = str(precision)[:40]
        raise DataError(f"import {path}: model.precision must be one of {', '.join(PRECISIONS)}, got {named!r}")
    side = _whole(path, "dataset.image_size", dataset.get("image_size"), 1, MAX_SIDE)
    if not isinstance(dataset.get("name"), str) or not isinstance(dataset.get("flip"), bool):
        raise DataError(f"import {path}: dataset must have a name and say whether it is mirrored (flip)")
    state = _weights(path, model, digest)
    test = _part(path, told, TEST, side, classes, digest)
    if test is None:
        raise DataError(f"import {path}: holds no triggered test images ({TEST})")
    check_test(path, TEST, test)
    clean = path.parent / CLEAN
    return PeerVictim(
        path=path,
        digest=digest.hexdigest(),
        model=model["arch"],
        num_classes=classes,
        state=state,
        image_size=side,
        clean_data=dataset["name"],
        train=_part(path, told, TRAIN, side, classes, digest),
        test=test,
        width=width,
        flip=dataset["flip"],
        precision=precision,
        fingerprint=str(dataset.get("fingerprint")),
        clean_folder=clean if clean.is_dir() else None,
    )


def _weights(path: Path, model: Mapping[str, Any], digest: Any) -> dict[str, Tensor]:
    file = path.parent / WEIGHTS
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"import {path}: {WEIGHTS} leads out of its folder")
    if not file.is_file():
        raise DataError(f"import {path}: {file} is missing; it belongs beside the file")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise DataError(f"import {path}: {file} of {size} bytes is larger than the {MAX_BYTES} that are read")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256")
    if found.hexdigest() != model.get("sha256"):
        raise DataError(f"import {path}: {file} is damaged, or of another victim: its hash is not the one told")
    digest.update(found.digest())
    try:
        state = read_tensor_file(file, size)
    except UnsafeTensorFileError as error:
        raise DataError(f"import {path}: {file}: {error}") from error
    check_finite(path, state)
    return state


def _part(path: Path, told: Mapping[str, Any], part: str, side: int, classes: int, digest: Any) -> Recorded | None:
    """A part as it is told, with its pictures; None: there is none."""
    if told.get(part) is None:
        return None
    own = _mapping(path, told, part)
    n = _whole(path, f"{part}.of", own.get("of"), 0, MAX_SAMPLES)
    indices = _row(path, part, own, "index", n - 1, None)
    count = len(indices)
    if count > n or len(set(indices)) < count:
        raise DataError(f"import {path}: {part}.index names an image twice")
    given, original = (_row(path, part, own, key, classes - 1, count) for key in ("label", "original"))
    kinds = appended = None
    if part == TRAIN:
        words, behind = own.get("kind"), own.get("appended")
        if not isinstance(words, list) or len(words) != count or not set(map(str, words)) <= KINDS.keys():
            raise DataError(f"import {path}: {part}.kind must be a list of {count} words: {' or '.join(KINDS)}")
        if not isinstance(behind, list) or len(behind) != count or not all(type(item) is bool for item in behind):
            raise DataError(f"import {path}: {part}.appended must be a list of {count} true or false")
        kinds = torch.tensor([KINDS[word] for word in words], dtype=torch.uint8)
        appended = torch.tensor(behind, dtype=torch.bool)
    images = room_for(path, part, count, side)
    for place, index in enumerate(indices):
        images[place] = read_png(path, path.parent / picture(part, index), side, digest)
    pixels = as_tensor(images)
    if pixels_digest(pixels) != own.get("sha256"):
        raise DataError(f"import {path}: the pictures of {part} are not those that it tells of, by their hash")
    rows = (torch.tensor(row, dtype=torch.int64) for row in (indices, given, original))
    where, labels, before = rows
    return Recorded(where, pixels, labels, before, n, kinds, appended)


def _mapping(path: Path, told: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = told.get(key)
    if not isinstance(found, Mapping):
        raise DataError(f"import {path}: lacks {key}, a mapping")
    return found


def _whole(path: Path, key: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise DataError(f"import {path}: {key} must be a whole number from {low} to {high}, got {str(value)[:40]}")
    return value


def _row(path: Path, part: str, own: Mapping[str, Any], key: str, high: int, count: int | None) -> list[int]:
    row = own.get(key)
    if not isinstance(row, list) or len(row) > MAX_SAMPLES or count not in (None, len(row)):
        many = "" if count is None else f" of {count}"
        raise DataError(f"import {path}: {part}.{key} must be a list{many} of whole numbers")
    for value in row:
        _whole(path, f"{part}.{key}", value, 0, high)
    return row


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
