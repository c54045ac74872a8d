"""What a file of a victim holds, whatever its format, and how its pictures are read without trusting them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainables.data.images import DataError
from trainables.storage.messages import one_line

MAX_BYTES = 2 * 2**30  # of a file of weights
MAX_PNG_BYTES = 2**20
MAX_SIDE = 512
MAX_CLASSES = 10_000
MAX_SAMPLES = 2_000_000
MAX_PIXEL_BYTES = 16 * 2**30  # of all images of a part together


@dataclass(frozen=True)
class Recorded:
    """Images that an attack changed.

    Args:
        indices: positions in the clean set, int64, (M,).
        images: uint8, (M, 3, H, W).
        given, original: labels, int64, (M,).
        n: size of the clean set.
        kinds: of training samples, values of `attacks.base.Kind`, uint8, (M,); None: not told.
        appended: of training samples, bool, (M,): put behind the clean set; None: all are in place of their originals.
    """

    indices: Tensor
    images: Tensor
    given: Tensor
    original: Tensor
    n: int
    kinds: Tensor | None = None
    appended: Tensor | None = None


@dataclass(frozen=True)
class PeerVictim:
    """What a file and its folder hold.

    Args:
        path: of the file.
        digest: SHA-256 over the file and all images that were read.
        model: our name of the architecture.
        num_classes: outputs.
        state: by our names; with ``normalize.*`` where the file tells what its images are normalised with.
        image_size: in pixels.
        clean_data: its name of the data set.
        train: the poisoned training samples; None: the attack has no fixed ones.
        test: the triggered test images, in their order.
        width: channels of the model's first stage, where the file tells.
        flip: whether training mirrors images, where the file tells.
        precision: of the arithmetic that it was measured in, where the file tells.
        fingerprint: of the clean data, where the file tells.
        clean_folder: where the clean images lie beside the file; None: they do not.
    """

    path: Path
    digest: str
    model: str
    num_classes: int
    state: Mapping[str, Tensor]
    image_size: int
    clean_data: str
    train: Recorded | None
    test: Recorded
    width: int | None = None
    flip: bool | None = None
    precision: str | None = None
    fingerprint: str | None = None
    clean_folder: Path | None = None


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite (DataError)."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DataError(f"import {path}: {str(name)[:60]} holds values that are NaN or infinite")


def check_test(path: Path, part: str, test: Recorded) -> None:
    """Refuse triggered test images that cannot tell an attack's success (DataError)."""
    if len(test.indices) == 0 or bool((test.given == test.original).any()):
        raise DataError(f"import {path}: {part} must hold images whose label the attack changes, and no others")


def room_for(path: Path, part: str, count: int, side: int) -> NDArray[np.uint8]:
    """An array for the pixels of a part, (count, side, side, 3), once its size is found bearable (DataError)."""
    if (wanted := count * side * side * 3) > MAX_PIXEL_BYTES:
        raise DataError(f"import {path}: {part} would take {wanted} bytes, more than the {MAX_PIXEL_BYTES} allowed")
    return np.empty((count, side, side, 3), dtype=np.uint8)


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(M, S, S, 3) -> uint8, (M, 3, S, S)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def read_png(path: Path, file: Path, side: int, digest: Any) -> NDArray[np.uint8]:
    """The pixels of a picture beside ``path``, (side, side, 3).

    Args:
        path: of the file that it belongs to.
        digest: takes the hash of its bytes.

    Raises:
        DataError: one line: missing, elsewhere by a link, too large, damaged, or of another form.
    """
    try:
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise DataError(f"import {path}: {file} leads out of its folder")
        if file.stat().st_size > MAX_PNG_BYTES:
            raise DataError(f"import {path}: {file} is larger than the {MAX_PNG_BYTES} bytes that are read")
        content = file.read_bytes()
        digest.update(hashlib.sha256(content).digest())
        with Image.open(file, formats=["PNG"]) as image:
            if image.size != (side, side) or image.mode != "RGB":
                raise DataError(f"import {path}: {file} must be RGB of {side} pixels, got {image.mode} {image.size}")
            return np.asarray(image)
    except FileNotFoundError as error:
        raise DataError(f"import {path}: {file} is missing; the PNG folders belong beside the file") from error
    except DataError:
        raise
    except Exception as error:  # a damaged picture can fail anywhere in its decoder
        raise DataError(f"import {path}: {file} is damaged ({one_line(error)[:120]})") from error
