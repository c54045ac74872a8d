"""A saved victim of BackdoorBench (``attack_result.pt`` and the PNG files beside it), opened without running its code.

The file is opened with ``weights_only=True``. What NumPy would build is built by classes of this file instead, which
keep the bytes as they are and take no memory that the file does not hold.
"""

from __future__ import annotations

import hashlib
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

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
from trainables.storage.messages import one_line
from trainables.storage.zip_check import UnsafeZipError, check_zip

KEYS = ("model_name", "num_classes", "model", "img_size", "clean_data", "bd_train", "bd_test")
# Its names of architectures that have the same layers here -> ours.
ARCHITECTURES = {"preactresnet18": "preact_resnet18"}
_FORMATS = {"i8": "q", "f8": "d"}


class _Dtype:
    """Stands in for ``numpy.dtype``: 8-byte integers and floats alone."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in _FORMATS:
            raise ValueError(f"an array of type {code!r}")
        self.format = _FORMATS[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError("an array of another byte order")


class _Array:
    """Stands in for ``numpy.ndarray``: one axis, as long as the bytes that the file holds for it."""

    values: tuple[float, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, _fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or len(shape) != 1:
            raise ValueError("an array that is no row of numbers")
        if shape[0] * 8 != len(content):
            raise ValueError(f"an array of {shape[0]} numbers in {len(content)} bytes")
        self.values = struct.unpack(f"<{shape[0]}{dtype.format}", content)


def _new_array(_kind: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, content: bytes) -> float:
    value: float = struct.unpack(f"<{dtype.format}", content)[0]
    return value


# NumPy 1 and 2 write different names for the same functions.
_ALLOWED: list[Any] = [(_Dtype, "numpy.dtype"), (_Array, "numpy.ndarray")]
for _room in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED += [(_new_array, f"{_room}._reconstruct"), (_scalar, f"{_room}.scalar")]


def read_backdoorbench(path: Path, size: int) -> PeerVictim:
    """The victim in an attack_result.pt of so many bytes; call it through `peer.read_peer`, which keeps what it read.

    Raises:
        DataError: one line; what a damaged file makes fail elsewhere may raise anything.
    """
    content = _open(path, size)
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise DataError(f"import {path}: lacks {', '.join(missing)}; it is no attack_result.pt of BackdoorBench")
    name, classes = content["model_name"], content["num_classes"]
    if name not in ARCHITECTURES:
        raise DataError(f"import {path}: model {str(name)[:60]!r} is not known here; known: {', '.join(ARCHITECTURES)}")
    if type(classes) is not int or not 2 <= classes <= MAX_CLASSES:
        raise DataError(f"import {path}: num_classes must be 2 to {MAX_CLASSES}, got {str(classes)[:40]}")
    height, width, channels = content["img_size"]
    if channels != 3 or height != width or type(height) is not int or not 1 <= height <= MAX_SIDE:
        raise DataError(f"import {path}: img_size must be square and of 3 channels, got {content['img_size']}")
    state = _state(path, content["model"], size)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    if content["bd_test"] is None:
        raise DataError(f"import {path}: holds no triggered test images (bd_test)")
    parts = {
        part: None if content[part] is None else _recorded(path, part, content[part], height, classes, digest)
        for part in ("bd_train", "bd_test")
    }
    test = parts["bd_test"]
    assert test is not None
    check_test(path, "bd_test", test)
    return PeerVictim(
        path,
        digest.hexdigest(),
        ARCHITECTURES[name],
        classes,
        state,
        height,
        str(content["clean_data"]),
        parts["bd_train"],
        test,
    )


def _open(path: Path, size: int) -> Mapping[str, Any]:
    if size > MAX_BYTES:
        raise DataError(f"import {path}: {size} bytes are more than the {MAX_BYTES} that are read")
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise DataError(f"import {path}: is no file of torch.save, by its first bytes")
    try:
        check_zip(path, size)
    except UnsafeZipError as error:
        raise DataError(f"import {path}: {error}") from error
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_ALLOWED):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # any operation of the unpickler may fail in any way
            why = one_line(error)
            if "Unsupported" in why or "nsafe" in why or "Weights only" in why:
                raise DataError(
                    f"import {path}: damaged, or holds more than tensors and numbers and would run code to be opened, "
                    "which is not done"
                ) from error
            raise DataError(f"import {path}: damaged ({type(error).__name__}: {why[:200]})") from error
    if not isinstance(content, Mapping):
        raise DataError(f"import {path}: holds a {type(content).__name__}, no attack_result.pt of BackdoorBench")
    return content


def our_name(name: str) -> str:
    """Its name of a PreAct-ResNet tensor -> ours."""
    name = name.removeprefix("module.")
    name = re.sub(r"^conv1\.", "stages.0.0.", name)
    name = re.sub(r"^layer(\d+)\.", r"stages.\1.", name)
    return re.sub(r"^linear\.", "classifier.", name).replace(".shortcut.0.", ".shortcut.")


def their_name(name: str) -> str:
    """The inverse of `our_name`."""
    name = name.replace("stages.0.0.", "conv1.").replace(".shortcut.", ".shortcut.0.")
    return re.sub(r"^classifier\.", "linear.", re.sub(r"^stages\.(\d+)\.", r"layer\1.", name))


def _state(path: Path, model: Any, size: int) -> dict[str, Tensor]:
    if not isinstance(model, Mapping) or not model or not all(isinstance(it, Tensor) for it in model.values()):
        raise DataError(f"import {path}: model must be a state dict")
    for name, tensor in model.items():
        # A view may repeat one number of the file a million million times.
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > size:
            raise DataError(f"import {path}: {str(name)[:60]} has more elements than the file holds")
    check_finite(path, model)
    return {our_name(str(name)): tensor.contiguous().clone() for name, tensor in model.items()}


def _recorded(path: Path, part: str, content: Any, side: int, classes: int, digest: Any) -> Recorded:
    """The images of ``bd_train`` or ``bd_test``, read from beside the file; ``digest`` takes their bytes."""
    told = content["bd_data_container"]["data_dict"]
    n = len(content["poison_indicator"].values)
    if n > MAX_SAMPLES or len(told) > n:
        raise DataError(f"import {path}: {part} names {len(told)} images of {n}")
    order = [int(key) for key in told]
    if part == "bd_test":  # the order in which it is measured there
        by_key = {int(index): place for place, index in enumerate(content["original_index_array"].values)}
        if not set(order) <= by_key.keys():
            raise DataError(f"import {path}: {part} names images that its original_index_array lacks")
        order.sort(key=by_key.__getitem__)
    values = {int(key): value for key, value in told.items()}
    if len(values) != len(told) or any(not 0 <= index < n for index in order):
        raise DataError(f"import {path}: {part} names images beyond its {n}, or one twice")
    images = room_for(path, part, len(order), side)
    labels = []
    for place, index in enumerate(order):
        given, original = values[index]["other_info"]
        if not all(type(label) is int and 0 <= label < classes for label in (given, original)):
            raise DataError(f"import {path}: {part}, image {index}: labels must be 0 to {classes - 1}")
        labels.append((given, original))
        images[place] = _png(path, part, values[index]["path"], side, digest)
    both = torch.tensor(labels, dtype=torch.int64).reshape(-1, 2)
    return Recorded(
        torch.tensor(order, dtype=torch.int64), as_tensor(images), both[:, 0].clone(), both[:, 1].clone(), n
    )


def _png(path: Path, part: str, told: Any, side: int, digest: Any) -> Any:
    if not isinstance(told, str):
        raise DataError(f"import {path}: {part} holds images themselves, which is not read; save them as PNG files")
    parts = PurePosixPath(told.replace("\\", "/")).parts
    if len(parts) < 2 or parts[0] == "/" or ".." in parts or ":" in parts[0] or not told.endswith(".png"):
        raise DataError(f"import {path}: {part}: path {told[:80]!r} must be relative, without .., and end in .png")
    return read_png(path, path.parent / f"{part}_dataset" / parts[-2] / parts[-1], side, digest)
