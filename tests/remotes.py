"""Storage behind a URI for tests, within this process: `memory://` folders, and one that can be made to fail."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Moody(MemoryFileSystem):  # type: ignore[misc]
    """Works as `memory://` until `refuses` says why it does not; what it raises is no OSError, as with most drivers."""

    protocol: ClassVar[str] = "moody"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    refuses: ClassVar[str | None] = None

    def _check(self) -> None:
        if Moody.refuses is not None:
            raise RuntimeError(Moody.refuses)

    def pipe_file(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return super().pipe_file(*arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return super().cat_file(*arguments, **options)

    def put_file(self, *arguments: Any, **options: Any) -> Any:
        self._check()
        return super().put_file(*arguments, **options)


fsspec.register_implementation("moody", Moody, clobber=True)


def new_uri(protocol: str = "memory") -> str:
    """Of a folder that nobody else uses."""
    return f"{protocol}://{uuid.uuid4().hex}/folder"
