"""Where the tests of data sets keep their files."""

from pathlib import Path

import pytest

from tests.trainables.data.pictures import noise, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: 3 + 2 training images, 1 + 1 test images, lossless, 12 pixels."""
    base = tmp_path / "pictures"
    for i in range(3):
        write(base / f"train/cat/{i}.png", noise(i))
    for i in range(2):
        write(base / f"train/dog/{i}.ppm", noise(10 + i))
    write(base / "test/cat/0.PNG", noise(20))
    write(base / "test/dog/0.png", noise(21))
    return base
