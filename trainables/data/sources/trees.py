"""Files by relative path, from a folder or from a zip file that is read in place."""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from trainables.data.images import DataError
from trainables.storage.messages import one_line

# The endings that torchvision's ImageFolder reads.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# What operating systems leave in folders and zip files by themselves; names that begin with a dot are hidden as well.
STRAY = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
MAX_DEPTH = 32  # folders within folders; more is a link to a folder above itself


class Tree(Protocol):
    """Files by relative path with forward slashes, from a folder or a zip file."""

    label: str

    def has(self, path: str) -> bool:
        """Whether there is a file or a folder of that path."""
        ...

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly in ``path``, sorted, without hidden and stray ones."""
        ...

    def files(self, path: str) -> list[str]:
        """Names of the files directly in ``path``, sorted, without hidden and stray ones."""
        ...

    def read(self, path: str) -> bytes:
        """Content of a file."""
        ...

    def stamp(self, paths: Iterable[str]) -> str:
        """Digest that changes when one of the files is replaced, without reading them."""
        ...

    def below(self, folder: str) -> Self:
        """The tree whose top is ``folder``."""
        ...


@contextmanager
def open_tree(name: str, path: Path, holds: str = "train/CLASS/* and test/CLASS/*") -> Iterator[Tree]:
    """The tree at ``path``. Raises DataError, naming data set ``name``, where there is neither folder nor zip file.

    Args:
        holds: what must be in it, for the message.
    """
    if path.is_dir():
        yield FolderTree(path)
        return
    if not path.exists():
        raise DataError(f"{name}: {path} does not exist; give a folder or zip file with {holds}")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{name}: {path} is neither a folder nor a readable zip file ({one_line(error)})") from error
    with archive:
        yield ZipTree(archive, str(path))


def images_below(tree: Tree, folder: str) -> tuple[list[str], list[str]]:
    """Paths, relative to ``folder``, of the image files in it and in its sub-folders, and those of the other files.

    Images are told by their ending in any case. In the order of torchvision's ImageFolder: by folder, then by name.
    Raises DataError where the folders have no end.
    """
    images: list[str] = []
    others: list[str] = []
    for inner in sorted(_folders_below(tree, folder, "", MAX_DEPTH)):
        for file in tree.files(_joined(folder, inner)):
            listed = images if is_image(file) else others
            listed.append(_joined(inner, file))
    return images, others


def is_image(file: str) -> bool:
    """Whether a file is an image by its ending."""
    return PurePosixPath(file).suffix.lower() in IMAGE_ENDINGS


def _folders_below(tree: Tree, folder: str, inner: str, depth: int) -> Iterator[str]:
    if depth == 0:
        raise DataError(
            f"{tree.label}/{folder}: {MAX_DEPTH} folders within each other; remove the link to a folder above itself"
        )
    yield inner
    for name in tree.folders(_joined(folder, inner)):
        yield from _folders_below(tree, folder, _joined(inner, name), depth - 1)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _shown(name: str) -> bool:
    return not name.startswith(".") and name.casefold() not in STRAY


class FolderTree:
    """Files below ``base``; links are followed."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.label = str(base)

    def has(self, path: str) -> bool:
        return (self.base / path).exists()

    def folders(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if _shown(entry.name) and entry.is_dir())

    def files(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if _shown(entry.name) and not entry.is_dir())

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()

    def stamp(self, paths: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            try:
                status = os.stat(self.base / path)
            except OSError:  # a dangling link: named later, when it cannot be read
                digest.update(f"{path}\0missing\n".encode())
                continue
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def below(self, folder: str) -> Self:
        return type(self)(self.base / folder)


class ZipTree:
    """Reads in place, nothing is unpacked. Names may be written with backslashes, as some Windows tools do."""

    def __init__(self, archive: zipfile.ZipFile, label: str, top: str = "") -> None:
        self.label = label
        self._archive = archive
        self._top = top
        self._files: dict[str, zipfile.ZipInfo] = {}
        self._children: dict[str, tuple[set[str], set[str]]] = {}  # folder -> (names of folders, names of files)
        above = [part for part in top.split("/") if part]
        for info in archive.infolist():
            written = info.filename.replace("\\", "/")
            parts = [part for part in written.split("/") if part not in ("", ".")]
            if parts[: len(above)] != above or len(parts) == len(above) or ".." in parts:
                continue
            *folders, name = parts[len(above) :]
            if written.endswith("/"):
                self._within([*folders, name])
            else:
                self._within(folders)[1].add(name)
                self._files["/".join((*folders, name))] = info

    def _within(self, folders: list[str]) -> tuple[set[str], set[str]]:
        """What lies in a folder, which is entered, with those above it, when it is first seen."""
        key = "/".join(folders)
        if key not in self._children:
            self._children[key] = (set(), set())
            if folders:
                self._within(folders[:-1])[0].add(folders[-1])
        return self._children[key]

    def has(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        folders, files = self._children.get(parent, (set(), set()))
        return name in folders or name in files

    def folders(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[0] if _shown(name))

    def files(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[1] if _shown(name))

    def read(self, path: str) -> bytes:
        if path not in self._files:
            raise FileNotFoundError(f"{path} is not in {self.label}")
        try:
            return self._archive.read(self._files[path])
        except RuntimeError as error:  # encrypted, or packed by a method that zipfile does not know
            raise OSError(one_line(error)) from error

    def stamp(self, paths: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for path in paths:
            info = self._files.get(path)
            digest.update(f"{path}\0{info.CRC}\0{info.file_size}\n".encode() if info else f"{path}\0missing\n".encode())
        return digest.hexdigest()

    def below(self, folder: str) -> Self:
        return type(self)(self._archive, f"{self.label}/{folder}", _joined(self._top, folder))
