"""The data sets that this machine can make under the shipped suite, and wrong ones that it must catch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from superft.testing.data import CHECKS
from superft.testing.data_checks import Subject

Check = Callable[[Subject], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise in a folder, 12 pixels."""
    base, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "emu"):
            (base / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(base / part / name / f"{number}.png")
    return base


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name = f"folder:{folder}" if request.param == "folder" else request.param
    return Subject(name, tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("subject", ["digits", "folder"], indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_data(subject: Subject, check: Check) -> None:
    check(subject)
