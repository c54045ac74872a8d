"""Made-up images, victims and ledgers of any size, whose cost is measured and not what comes out of them."""

from __future__ import annotations

import json
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.common import RESULTS
from trainables.data.images import Dataset, ImageSet
from trainables.training.recipes import TrainingRecipe

BATCH = 64
TEST_SHARE = 10  # training images to one test image


def image_files(path: Path, images: int, classes: int, pixels: int) -> Path:
    """``path``: a zip of PNG files of noise, or, without that ending, a folder of them; as many in every class."""
    draw = np.random.default_rng(0)
    archive = zipfile.ZipFile(path, "w") if path.suffix == ".zip" else None
    for part, count in (("train", images), ("test", test_images(images, classes))):
        for number in range(count):
            name = f"{part}/{number % classes:04d}/{number:07d}.png"
            content = png(draw.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8))
            if archive is not None:
                archive.writestr(name, content)
                continue
            if number < classes:
                (path / name).parent.mkdir(parents=True)
            (path / name).write_bytes(content)
    if archive is not None:
        archive.close()
    return path


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """RGB pixels (H, W, 3) as a PNG file; PIL takes ten times as long to write a small one."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(lines.tobytes(), 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def test_images(images: int, classes: int) -> int:
    """A tenth, but four of every class at least."""
    return max(images // TEST_SHARE, 4 * classes)


def dataset(images: int, classes: int, pixels: int) -> Dataset:
    """Noise in memory."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> ImageSet:
        noise = torch.randint(0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
        return ImageSet(noise, torch.arange(count) % classes)

    names = tuple(f"{label:04d}" for label in range(classes))
    middle = (0.5, 0.5, 0.5)
    parts = part(images), part(test_images(images, classes))
    return Dataset("made-up", *parts, names, middle, middle, True, f"made-up {images} {classes} {pixels}")


def recipe(images: int, steps: int) -> TrainingRecipe:
    """So many steps, whatever the number of images."""
    return TrainingRecipe(epochs=steps / -(-images // BATCH), batch_size=BATCH, lr=0.01)


def finished_study(folder: Path, trials: int, *, dearest: bool) -> Path:
    """The quickstart's rows again and again with other settings: two searches of one seed, ``trials`` in all.

    Rates fall with the peak learning rate, with luck, and are counted on 5,000 images. ``dearest``: without luck, so
    that all settings lie on one curve and the front grows with the study.
    """
    shipped = RESULTS / "quickstart"
    spec = yaml.safe_load((shipped / "study.yaml").read_text())
    spec["seeds"], spec["search"]["trials"] = [0], trials // 2
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(spec))
    rows = [json.loads(line) for line in (shipped / "trials.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["seed"] == 0]
    draw = random.Random(0)
    with (folder / "trials.jsonl").open("w") as file:
        for row in rows:
            if row["role"] == "baseline":
                file.write(json.dumps(row) + "\n")
        for attack in spec["attacks"]:
            published, other = [row for row in rows if row["role"] == "search" and row["attack"] == attack][:2]
            for number in range(trials // 2):
                like = published if number == 0 else other
                made = like | {"trial": f"{attack}/super_ft/{number:04d}"} | _settings(draw)
                file.write(json.dumps(made | _rates(made["param.lr_max1"], draw, dearest)) + "\n")
    return folder


def _settings(draw: random.Random) -> dict[str, Any]:
    ranges = {"lr_base": (-5.0, -2.0), "lr_max1": (-2.0, 0.3), "lr_max2": (-4.0, -1.0)}
    rates = {f"param.{name}": 10 ** draw.uniform(*ends) for name, ends in ranges.items()}
    return rates | {"param.iterations": draw.randint(20, 500)}


def _rates(peak: float, draw: random.Random, dearest: bool) -> dict[str, float]:
    asr = min(1.0, 0.05 / peak)
    accuracy = 0.95 - 0.2 * (1.0 - asr) ** 2
    if not dearest:
        asr = min(1.0, round(asr * 2 ** draw.gauss(0, 0.4) * 5000) / 5000)
        accuracy = round((accuracy - 0.1 * abs(draw.gauss(0, 0.3))) * 5000) / 5000
    values = {"asr": asr, "clean_accuracy": accuracy, "robust_accuracy": 0.8 * (1.0 - asr)}
    return {f"{name}{half}": value for name, value in values.items() for half in ("", "_search", "_report")}
