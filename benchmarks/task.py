"""A study's work without its engine: images from a zip, one BadNets victim, one super-fine-tuning trial.

Needs torch and torchvision alone: victims are made in this process and kept in no store.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainables.data.images import Dataset, ImageSet
from trainables.data.load import DataSource, load_dataset
from trainables.evaluation.metrics import evaluate
from trainables.job import Cell
from trainables.training.recipes import TrainingRecipe
from trainables.trial import run_trial
from trainables.trial_result import TrialResult
from trainables.victims.make import make_trainer
from trainables.victims.spec import VictimSpec
from trainables.victims.victim import Victim


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Args:
        data: the images, on the CPU.
        spec: of the victim.
        clean_fraction: share of every class that the defender holds.
    """

    data: Dataset
    spec: VictimSpec
    clean_fraction: float = 0.1

    @property
    def cell(self) -> Cell:
        """Super-fine-tuning of the victim."""
        return Cell(DataSource(self.data.name), self.spec, "super_ft", self.clean_fraction)

    def with_seed(self, seed: int) -> Task:
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, seed=seed))


def photographs(path: Path, per_class: int | None = None) -> Dataset:
    """Image folders, or a zip file of them, that may be mirrored in training as CIFAR-10's are.

    Args:
        per_class: only so many training images of every class, and a fifth as many test images.
    """
    found = load_dataset(f"folder:{path}")
    if per_class is None:
        return dataclasses.replace(found, flip=True)
    train, test = _some(found.train, per_class), _some(found.test, -(-per_class // 5))
    return dataclasses.replace(found, train=train, test=test, flip=True)


def _some(images: ImageSet, per_class: int) -> ImageSet:
    members = [(images.labels == label).nonzero()[:per_class, 0] for label in images.labels.unique()]
    return images.subset(torch.cat(members))


def task_of(data: Dataset, recipe: TrainingRecipe, width: int, precision: str = "auto") -> Task:
    """BadNets at its defaults on PreAct-ResNet18."""
    return Task(data, VictimSpec("badnets", "preact_resnet18", recipe, width=width, precision=precision))


def make_victim(task: Task, device: torch.device) -> Victim:
    """The victim, trained now; ``facts`` hold its seconds: `seconds_train` (poisoning included), `seconds_evaluate`."""
    attack, data = task.spec.make_attack(), task.data
    started = time.perf_counter()
    trainer = make_trainer(task.spec, data, device, seed=task.spec.seed)
    implanted = attack.implant(data.train.to(device), trainer, task.spec.recipe)
    synchronise(device)
    trained = time.perf_counter()
    test = data.test.to(device)
    triggered = attack.triggered_test(implanted.trigger, test, data.num_classes)
    evaluation = evaluate(implanted.model, test, triggered, precision=task.spec.precision)
    seconds = {"seconds_train": trained - started, "seconds_evaluate": time.perf_counter() - trained}
    return Victim(
        name=f"badnets-seed{task.spec.seed}",
        spec=task.spec,
        model=implanted.model.cpu(),
        trigger=implanted.trigger.cpu(),
        poisoned=implanted.poisoned,
        attacker_indices=torch.arange(len(data.train)),
        triggered=triggered.to("cpu"),
        evaluation=evaluation,
        # Measured on no control: one more training would be no part of the question.
        asr_base=None,
        clean_model_accuracy=None,
        asr_including_target=evaluation.full.asr,
        facts={"upstream": None, "steps": trainer.counters.steps, **seconds},
    )


def run_super_ft(task: Task, victim: Victim, device: torch.device, *, steps: int, batch_size: int) -> TrialResult:
    """One trial: two triangles of ``steps / 2`` each, then the evaluation."""
    settings = {"iterations": max(1, steps // 2), "batch_size": batch_size}
    return run_trial(task.cell, settings, dataset=task.data, victim=victim, device=device)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
