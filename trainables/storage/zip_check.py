"""The zip file that ``torch.save`` writes, looked over before anything in it is unpacked."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path, PurePosixPath

from trainables.storage.messages import one_line

MAX_MEMBERS = 20_000  # tensors of a file
MAX_HEADER = 16 * 2**20  # bytes that describe the tensors


class UnsafeZipError(ValueError):
    """A zip that torch.save would not have written; the message says why, without the file's name."""


def check_zip(path: Path, size: int) -> None:
    """Refuse a zip that torch.save would not have written.

    Args:
        size: of the file, in bytes; no member, nor all of them together, may be larger.

    Raises:
        UnsafeZipError: damaged, too many members, compressed ones, or a name that leads out of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UnsafeZipError(f"damaged zip file ({one_line(error)})") from error
    if len(members) > MAX_MEMBERS:
        raise UnsafeZipError(f"{len(members)} members are more than the {MAX_MEMBERS} that are read")
    for member in members:
        name = member.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise UnsafeZipError(f"its member {member.filename!r} leads out of the file")
        if member.compress_type != zipfile.ZIP_STORED:
            raise UnsafeZipError(f"its member {name!r} is compressed, which torch.save never does")
        if member.file_size > size:
            raise UnsafeZipError(f"damaged, {name!r} would have {member.file_size} bytes of {size}")
        if name.endswith("data.pkl") and member.file_size > MAX_HEADER:
            raise UnsafeZipError(f"{name} of {member.file_size} bytes is no list of tensors")
    if sum(member.file_size for member in members) > size:
        raise UnsafeZipError("damaged, its members overlap")
