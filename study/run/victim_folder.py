"""`superft export --format folder`: a victim of the store in our own exchange format, see docs/own_models.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from PIL import Image
from torch import Tensor

from study.run.victim_files import WholeVictim, check_folder_place, whole_victim, written_whole
from study.spec.yaml_io import SpecError
from trainables.attacks.base import ATTACKS
from trainables.attacks.victim_folder import (
    CLEAN,
    DESCRIPTION,
    FORMAT,
    KINDS,
    TEST,
    TRAIN,
    VERSION,
    WEIGHTS,
    picture,
    pixels_digest,
)
from trainables.data.images import ImageSet
from trainables.data.sources.folders import FOLDER
from trainables.machine.provenance import code
from trainables.storage.files import save_tensors
from trainables.storage.remote import Place


def export_folder(
    victim: str, out: Path, *, store: Place | None = None, download: bool = False, overwrite: bool = False
) -> Path:
    """Write a victim of the store as a folder; the path of its victim.json.

    The clean images of ``folder:PATH`` are written too, for nobody else has them.

    Args:
        out: a folder that is not there yet, or with ``overwrite`` one that this made before.

    Raises:
        SpecError: no such victim, one that the format has no place for, or it cannot be written there.
    """
    check_folder_place(out, overwrite, DESCRIPTION)
    found = whole_victim(victim, store, download)
    if not ATTACKS.get(found.spec["attack"]).implants_backdoor:
        raise SpecError(f"--victim {found.name}: is a clean model, without triggered images")
    own_images = found.dataset.name.startswith(FOLDER)
    if own_images:
        _check_order(found)
    with written_whole(out) as aside:
        _write(aside, found, own_images)
    return out / DESCRIPTION


def _write(folder: Path, victim: WholeVictim, own_images: bool) -> None:
    dataset, poisoned, triggered = victim.dataset, victim.poisoned, victim.triggered
    state = {key: value.detach().cpu().contiguous() for key, value in victim.state.items()}
    save_tensors(state, folder / WEIGHTS)
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    train: dict[str, Any] | None = None
    if len(poisoned):
        words = {kind: word for word, kind in KINDS.items()}
        train = {
            **_part(folder, TRAIN, poisoned.indices, poisoned.images, poisoned.labels, dataset.train),
            "kind": [words[kind] for kind in poisoned.kinds.tolist()],
            "appended": (~poisoned.in_place).tolist(),
        }
    test = _part(folder, TEST, triggered.sources, triggered.images, triggered.targets, dataset.test)
    if own_images:
        for name, part in (("train", dataset.train), ("test", dataset.test)):
            _write_clean(folder / CLEAN / name, part, dataset.classes)
    spec = victim.spec
    described: Mapping[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            "arch": spec["model"],
            "width": spec["width"],
            "num_classes": dataset.num_classes,
            "precision": _precision(victim),
            "sha256": digest,
        },
        "dataset": {
            "name": PurePath(dataset.name.removeprefix(FOLDER)).name if own_images else dataset.name,
            "image_size": dataset.image_size,
            "flip": victim.facts["dataset"].get("flip", dataset.flip),
            "fingerprint": dataset.fingerprint,
            "classes": list(dataset.classes),
        },
        TRAIN: train,
        TEST: test,
        "made": {
            "victim": victim.name,
            "attack": spec["attack"],
            "seed": spec["seed"],
            "recipe": spec["recipe"],
            "rates": victim.facts["evaluation"]["full"],
            "versions": victim.facts["versions"],
            "written_by": code(),
        },
    }
    # A key a line: rows of thousands of numbers, one below the other, nobody reads.
    lines = [f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in described.items()]
    (folder / DESCRIPTION).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _precision(victim: WholeVictim) -> str:
    """What it was measured in: in another arithmetic single images fall on the other side of a border."""
    told: str = (victim.facts.get("arithmetic") or victim.spec)["precision"]
    return "float32" if told == "auto" else told  # of a victim of an earlier version, which does not say


def _part(folder: Path, part: str, indices: Tensor, images: Tensor, given: Tensor, clean: ImageSet) -> dict[str, Any]:
    """The rows of a part, whose pictures are written."""
    (folder / part).mkdir()
    for index, pixels in zip(indices.tolist(), images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(pixels).save(folder / picture(part, index))
    return {
        "of": len(clean),
        "sha256": pixels_digest(images),
        "index": indices.tolist(),
        "label": given.tolist(),
        "original": clean.labels[indices].tolist(),
    }


def _check_order(victim: WholeVictim) -> None:
    """Refuse images that would be read back in another order, whose places name the pictures (SpecError)."""
    dataset = victim.dataset
    for part in (dataset.train, dataset.test):
        if bool((part.labels.diff() < 0).any()):
            raise SpecError(
                f"--victim {victim.name}: the images of {dataset.name} do not come class by class (a table lists "
                "them), which the format has no place for"
            )
    for name in dataset.classes:
        if PurePath(name).name != name or name.startswith("."):
            raise SpecError(f"--victim {victim.name}: class {name!r} of {dataset.name} is no name of a folder")


def _write_clean(folder: Path, part: ImageSet, classes: tuple[str, ...]) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
    for index, (pixels, label) in enumerate(
        zip(part.images.permute(0, 2, 3, 1).numpy(), part.labels.tolist(), strict=True)
    ):
        Image.fromarray(pixels).save(folder / classes[label] / f"{index:06d}.png")
