"""Victims of other people's programs: one into the store, and one of the store's out into such a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from study.plan.data import one_of
from study.plan.jobs import prepare
from study.record.folder import check_store
from study.run.one_trial import pick_device
from study.run.victim_files import check_folder_place, whole_victim, written_whole
from study.spec.load import make_spec, without_sweep
from study.spec.yaml_io import SpecError
from trainables.attacks.base import PoisonedSamples
from trainables.attacks.peer import read_peer
from trainables.attacks.peer_file import ARCHITECTURES, their_name
from trainables.data.images import Dataset, TriggeredSet
from trainables.data.sources.folders import FOLDER
from trainables.plugins.load import load_installed
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store
from trainables.victims.victim import Victim
from trainables.workbench import Workbench

RESULT = "attack_result.pt"


def import_victim(
    file: Path,
    *,
    dataset: str | None = None,
    width: int | None = None,
    seed: int = 0,
    store: Place | None = None,
    download: bool = False,
    device: str | None = None,
) -> Victim:
    """Read a victim, check it against the clean data, measure it and put it into the store.

    Args:
        file: an attack_result.pt, or a folder with a victim.json.
        dataset: the clean data, in the order of its maker; default what lies beside the file, else what it names.
        width: of the model's stem; default what the file tells, else the architecture's own.

    Raises:
        SpecError, SettingError, DataError: not such a file, or other data; nothing is stored.
    """
    load_installed()
    peer = read_peer(file)
    settings: dict[str, Any] = {
        "name": "import",
        "attacks": ["imported"],
        "baselines": ["none"],
        "attack": {"imported": {"path": str(file)}},
        "dataset": dataset
        or (peer.clean_data if peer.clean_folder is None else f"{FOLDER}{peer.clean_folder.resolve()}"),
        "model": peer.model,
        "seeds": [seed],
        "download": download,
        "store": None if store is None else str(store),
    }
    width = peer.width if width is None else width
    if width is not None:
        settings["width"] = width
    if not settings["dataset"].startswith(FOLDER) or peer.clean_folder is not None:
        settings["image_size"] = peer.image_size
    if peer.precision is not None:
        settings["precision"] = peer.precision
    if peer.flip is not None and settings["dataset"].startswith(FOLDER):
        settings["flip"] = peer.flip
    spec = without_sweep(make_spec(settings))
    plan, data, _ = prepare(spec)
    if peer.fingerprint is not None and one_of(data).fingerprint != peer.fingerprint:
        raise SpecError(
            f"import {file}: data set {settings['dataset']} is not the one that the victim was made on: other "
            "images or labels, or another order"
        )
    place = open_store(spec.store)
    check_store(place)
    bench = Workbench(place, pick_device(device), threads=spec.resources.cpus_per_trial)
    return bench.victim(plan.cells[0])


def describe_import(victim: Victim) -> str:
    """What was stored, for people."""
    rates = victim.evaluation.full
    return "\n".join(
        [
            f"victim: {victim.name}",
            f"  attack success rate {rates.asr:.4f} ({rates.n_triggered} triggered test images), "
            f"clean accuracy {rates.clean_accuracy:.4f}, robust accuracy {rates.robust_accuracy:.4f}",
            f"  {len(victim.poisoned)} poisoned training images"
            if len(victim.poisoned)
            else "  no poisoned training images: defenses that need the training set cannot run on it",
        ]
    )


def export_backdoorbench(
    victim: str, out: Path, *, store: Place | None = None, download: bool = False, overwrite: bool = False
) -> Path:
    """Write a victim of the store as BackdoorBench saves its own; the path of attack_result.pt.

    Args:
        out: a folder that is not there yet, or with ``overwrite`` one that this made before.

    Raises:
        SpecError: no such victim, one that the format has no place for, or it cannot be written there.
    """
    check_folder_place(out, overwrite, RESULT)
    found = whole_victim(victim, store, download)
    theirs = {ours: peers for peers, ours in ARCHITECTURES.items()}
    if (model := found.spec["model"]) not in theirs:
        raise SpecError(f"--victim {found.name}: BackdoorBench has no {model}; known: {', '.join(theirs)}")
    if not bool(found.poisoned.in_place.all()):
        raise SpecError(
            f"--victim {found.name}: has samples behind its training set, which the format has no place for"
        )
    with written_whole(out) as aside:
        _write(aside, out.name, found.state, theirs[model], found.dataset, found.poisoned, found.triggered)
    return out / RESULT


def _write(
    folder: Path,
    called: str,
    model: dict[str, Tensor],
    model_name: str,
    dataset: Dataset,
    poisoned: PoisonedSamples,
    triggered: TriggeredSet,
) -> None:
    train = None
    if len(poisoned):
        originals = dataset.train.labels[poisoned.indices]
        everything = torch.arange(len(dataset.train))
        train = _part(
            folder, called, "bd_train", poisoned.indices, poisoned.images, poisoned.labels, originals, everything,
            len(dataset.train),
        )  # fmt: skip
    test = _part(
        folder, called, "bd_test", triggered.sources, triggered.images, triggered.targets, triggered.labels,
        triggered.sources, len(dataset.test),
    )  # fmt: skip
    side = dataset.image_size
    content = {
        "model_name": model_name,
        "num_classes": dataset.num_classes,
        "model": {their_name(key): value for key, value in model.items() if not key.startswith("normalize.")},
        "data_path": f"./data/{Path(dataset.name).name}",
        "img_size": (side, side, 3),
        "clean_data": dataset.name,
        "bd_train": train,
        "bd_test": test,
    }
    torch.save(content, folder / RESULT)


def _part(
    folder: Path,
    called: str,
    part: str,
    indices: Tensor,
    images: Tensor,
    given: Tensor,
    original: Tensor,
    order: Tensor,
    n: int,
) -> dict[str, Any]:
    """One of the two dicts of images, whose PNG files are written; ``n`` images are in the clean set."""
    where, data = f"./record/{called}/{part}_dataset", {}
    rows = zip(indices.tolist(), images.permute(0, 2, 3, 1).numpy(), given.tolist(), original.tolist(), strict=True)
    for index, pixels, label, before in rows:
        (folder / f"{part}_dataset" / str(before)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{part}_dataset" / str(before) / f"{index}.png")
        data[np.int64(index)] = {"path": f"{where}/{before}/{index}.png", "other_info": [label, before]}
    indicator = np.zeros(n, dtype=np.float64)
    indicator[indices.numpy()] = 1.0
    return {
        "bd_data_container": {"save_folder_path": where, "data_dict": data, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": order.numpy().astype(np.int64),
        "poison_indicator": indicator,
        "save_folder_path": where,
    }
