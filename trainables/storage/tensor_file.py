"""A safetensors file of a stranger, looked over before memory is taken for what it says it holds."""

from __future__ import annotations

import struct
from pathlib import Path

from torch import Tensor

from trainables.storage.messages import one_line
from trainables.storage.zip_check import MAX_HEADER, MAX_MEMBERS


class UnsafeTensorFileError(ValueError):
    """A file that is no safetensors file, or a damaged one; the message says why, without the file's name."""


def read_tensor_file(path: Path, size: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        size: of the file, in bytes; no more than that is taken for all tensors together.

    Raises:
        UnsafeTensorFileError: damaged, or too many tensors.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open  # here: see `files.save_tensors`

    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise UnsafeTensorFileError(f"damaged, a safetensors file of {size} bytes")
    (header,) = struct.unpack("<Q", start)
    if header > min(MAX_HEADER, size - 8):
        raise UnsafeTensorFileError(f"damaged, its header would have {header} bytes of a file of {size}")
    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            if len(names) > MAX_MEMBERS:
                raise UnsafeTensorFileError(f"holds {len(names)} tensors, more than {MAX_MEMBERS}")
            return {name: opened.get_tensor(name) for name in names}
    except UnsafeTensorFileError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise UnsafeTensorFileError(f"damaged safetensors file ({one_line(error)})") from error
