"""Files by relative path, from a folder or from a zip file that is read in place."""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from trainables.data.images import DataError
from trainables.storage.messages import one_line

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm")


class Tree(Protocol):
    """Files by relative path with forward slashes, from a folder or a zip file."""

    label: str

    def has(self, path: str) -> bool:
        """Whether there is a file or a folder of that path."""
        ...

    def folders(self, path: str) -> list[str]:
        """Names of the folders directly in ``path``, sorted, without hidden ones."""
        ...

    def files(self, path: str) -> list[str]:
        """Names of the files directly in ``path``, sorted, without hidden ones."""
        ...

    def read(self, path: str) -> bytes:
        """Content of a file."""
        ...

    def stamp(self, paths: Iterable[str]) -> str:
        """Digest that changes when one of the files is replaced, without reading them."""
        ...


@contextmanager
def open_tree(name: str, path: Path) -> Iterator[Tree]:
    """The tree at ``path``. Raises DataError, naming data set ``name``, where there is neither folder nor zip file."""
    if path.is_dir():
        yield FolderTree(path)
        return
    if not path.exists():
        raise DataError(f"{name}: {path} does not exist; give a folder or zip file with train/CLASS/* and test/CLASS/*")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{name}: {path} is neither a folder nor a readable zip file ({one_line(error)})") from error
    with archive:
        yield ZipTree(archive, str(path))


def images_in(tree: Tree, folder: str) -> tuple[list[str], list[str]]:
    """Names of image files, by their ending in any case, and of the other files."""
    images: list[str] = []
    others: list[str] = []
    for file in tree.files(folder):
        (images if PurePosixPath(file).suffix.lower() in IMAGE_ENDINGS else others).append(file)
    return images, others


class FolderTree:
    """Files below ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.label = str(base)

    def has(self, path: str) -> bool:
        return (self.base / path).exists()

    def folders(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))

    def files(self, path: str) -> list[str]:
        with os.scandir(self.base / path) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))

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


class ZipTree:
    """Reads in place, nothing is unpacked. One folder around everything (``zip -r x.zip x``) is looked through."""

    def __init__(self, archive: zipfile.ZipFile, label: str) -> None:
        self.label = label
        self._archive = archive
        infos = {info.filename.rstrip("/"): info for info in archive.infolist() if not info.filename.startswith("/")}
        tops = {name.split("/")[0] for name in infos} - {"__MACOSX"}
        only = next(iter(tops)) + "/" if len(tops) == 1 else ""
        if only and only not in ("train/", "test/", "val/"):
            infos = {name[len(only) :]: info for name, info in infos.items() if name.startswith(only)}
        self._files = {name: info for name, info in infos.items() if not info.is_dir()}
        self._children: dict[str, tuple[set[str], set[str]]] = {}  # folder -> (names of folders, names of files)
        for name, info in infos.items():
            path = PurePosixPath(name)
            self._within(str(path.parent))[0 if info.is_dir() else 1].add(path.name)
            for parent in path.parents[:-1]:
                self._within(str(parent.parent))[0].add(parent.name)

    def _within(self, folder: str) -> tuple[set[str], set[str]]:
        return self._children.setdefault("" if folder == "." else folder, (set(), set()))

    def has(self, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        folders, files = self._children.get(parent, (set(), set()))
        return name in folders or name in files

    def folders(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[0] if not name.startswith("."))

    def files(self, path: str) -> list[str]:
        return sorted(name for name in self._children.get(path, (set(), set()))[1] if not name.startswith("."))

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
