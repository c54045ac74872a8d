"""What the repair of one's own model takes beyond its training steps; and, with ``--planted``, what choosing takes.

    python -m benchmarks.own_model [--images 2000] [--pixels 32] [--iterations 500] [--repeats 3]
    python -m benchmarks.own_model --planted STORE [--trials 20]

Both sides of the first take the published super-fine-tuning of a plain ResNet-18 (torchvision's blocks, with a 3x3 stem
where ``--pixels`` is below 64), in turns: ``repair`` is `superft.repair` whole, with checks of the model and its
images, accuracies before and after, displacement and the copy that is handed back; ``steps alone`` is the training
loop on as many images as the repair trains on. The model is not trained and the images are noise: only time counts.

The second makes a victim on digits (BadNets, the quickstart's), hands its weights and a tenth of the images to
`superft.repair(choose="planted")`, three kinds of trigger and ``--trials`` candidates on Ray, and times it once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision import models

import superft
from benchmarks.common import in_turns, machine, ratio, record, summary
from benchmarks.task import synchronise
from study.run.one_trial import pick_device
from trainables.data.images import ImageSet
from trainables.data.load import DataSource
from trainables.defenses.base import CleanData
from trainables.defenses.super_ft import SuperFineTuning
from trainables.evaluation.metrics import evaluate
from trainables.foreign.adapter import adapt
from trainables.job import Cell
from trainables.machine.threads import on_threads
from trainables.models.classifier import Classifier
from trainables.storage.store import Store
from trainables.training.recipes import RECIPES
from trainables.training.trainer import Trainer
from trainables.trial import assets_for
from trainables.victims.spec import VictimSpec
from trainables.workbench import Workbench

CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
SMALL = 64  # pixels below which a ResNet keeps its first stages as large as the image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=500, help="of each of the two triangles")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--planted", type=Path, metavar="STORE", help="of the victim; times a choice")
    parser.add_argument("--trials", type=int, default=20, help="candidates of the choice")
    arguments = parser.parse_args()
    with on_threads(arguments.threads):
        if arguments.planted is not None:
            record("own_model", {**planted(arguments.planted, arguments.trials), **machine(pick_device(None))})
            return
        question = {key: getattr(arguments, key) for key in ("images", "pixels", "iterations", "threads")}
        record("own_model", {**question, **measure(arguments), **machine(pick_device(None))})


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sides, and their ratio turn by turn."""
    draw = np.random.default_rng(0)
    shape = (arguments.images, 3, arguments.pixels, arguments.pixels)
    images, labels = draw.integers(0, 256, shape, dtype=np.uint8), np.arange(arguments.images) % CLASSES
    model, trained_on = resnet18(arguments.pixels), list[int]()
    settings = {"iterations": arguments.iterations}

    def repair() -> float:
        began = time.perf_counter()
        repaired = superft.repair(model, images, labels, mean=MEAN, std=STD, settings=settings, accept=True)
        trained_on.append(repaired.report["images"]["train"])
        return time.perf_counter() - began

    def steps_alone() -> float:
        count = trained_on[0]
        data = ImageSet(torch.from_numpy(images[:count]), torch.from_numpy(labels[:count]))
        return train(data, SuperFineTuning(**settings))

    seconds = in_turns({"repair": repair, "steps alone": steps_alone}, arguments.repeats)
    return {
        "trained_on": trained_on[0],
        "seconds": {side: summary(found) for side, found in seconds.items()},
        "ratio": ratio(seconds["repair"], seconds["steps alone"]),
    }


def train(data: ImageSet, defense: SuperFineTuning) -> float:
    """Seconds of the defense's training steps on a new model."""
    device, size = pick_device(None), data.image_size
    model, _ = adapt(resnet18(size).to(device), image_size=size, mean=MEAN, std=STD)
    trainer = Trainer(device, seed=0, num_classes=CLASSES, flip=True, padding=min(4, size // 8), new_model=_none)
    owned = CleanData(data.to(device), data.subset(torch.arange(0)).to(device))
    synchronise(device)
    began = time.perf_counter()
    defense.repair(model, owned, trainer)
    synchronise(device)
    return time.perf_counter() - began


def _none(_: torch.Generator) -> Classifier:
    raise AssertionError("super-fine-tuning begins with no new model")


def resnet18(pixels: int) -> nn.Module:
    """Torchvision's, random weights; its first stages see small images whole."""
    model: nn.Module = models.resnet18(num_classes=CLASSES)
    if pixels < SMALL:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def planted(store: Path, trials: int) -> dict[str, Any]:
    """Seconds of a repair whose settings planted triggers choose, and what it came to."""
    device = pick_device(None)
    bench = Workbench(Store(store), device, threads=torch.get_num_threads())
    cell = Cell(
        DataSource("digits", image_size=16),
        VictimSpec("badnets", "airbench_cnn", RECIPES["quick"], 0, width=8),
        "super_ft",
        clean_fraction=0.1,
    )
    victim, data = bench.victim(cell), bench.dataset(cell.data)
    owned = assets_for(SuperFineTuning(), cell, data, victim, device)
    assert isinstance(owned, CleanData)
    images = torch.cat([owned.train.images, owned.validation.images])
    labels = torch.cat([owned.train.labels, owned.validation.labels])
    began = time.perf_counter()
    repaired = superft.repair(
        victim.model, images.numpy(), labels.numpy(), flip=data.flip, choose="planted", trials=trials
    )
    seconds = time.perf_counter() - began
    after = evaluate(repaired.model.to(device), data.test.to(device), victim.triggered).full
    before = victim.evaluation.full
    return {
        "choose": "planted",
        "trials": trials,
        "images": len(images),
        "seconds": round(seconds, 1),
        "chosen": repaired.report["choice"]["candidate"],
        "asr": [round(before.asr, 4), round(after.asr, 4)],
        "clean_accuracy": [round(before.clean_accuracy, 4), round(after.clean_accuracy, 4)],
    }


if __name__ == "__main__":
    main()
