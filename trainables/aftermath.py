"""The aftermath of one trial: what is asked of its repaired model, with the victim's trigger and the attacker's data.

All of it is the evaluator's: it begins when the repair's own numbers are taken, works on copies with random streams and
counters of its own, and nothing of it reaches a defense.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import torch

from trainables import members
from trainables.data.images import DataError, Dataset
from trainables.evaluation.aftermath import connectivity, reinjection, retuning
from trainables.evaluation.aftermath.further_training import report_sizes
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.job import Cell
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed
from trainables.storage.memo import Memo
from trainables.training.loop import Counters
from trainables.victims.make import make_trainer
from trainables.victims.spec import attacker_labels
from trainables.victims.victim import Victim


def check_aftermath(asked: Aftermath, cell: Cell, settings: Mapping[str, Any], dataset: Dataset) -> None:
    """Refuse, before any work, an aftermath that cell and data do not allow (DataError, SettingError)."""
    attack, labels = cell.victim.make_attack(), attacker_labels(cell.victim, dataset)
    if not attack.trigger_applies and (asked.reinjection is not None or asked.retuning is not None):
        raise DataError(
            f"aftermath: attack {attack.name} has a trigger that is known by its test images alone; reinjection and "
            "retuning, which put it on others, are not possible"
        )
    if asked.reinjection is not None:
        reinjection.check_reinjection(asked.reinjection, attack, labels, dataset.num_classes)
    if asked.retuning is not None:
        retuning.check_retuning(asked.retuning, attack, len(labels))
    if asked.connectivity is not None:
        connectivity.check_connectivity(attack)
    if asked.membership is not None:
        members.check_membership(asked.membership, cell, settings, dataset)


def planned_work(asked: Aftermath, cell: Cell, settings: Mapping[str, Any], dataset: Dataset) -> Counters:
    """Work on the model of one trial, before it is done; that of `shadow_work` is not in it."""
    attack, labels, total = cell.victim.make_attack(), attacker_labels(cell.victim, dataset), Counters()
    changed = (attack.targets(dataset.test.labels, dataset.num_classes) != dataset.test.labels).nonzero()[:, 0]
    n_measured = report_sizes(dataset.test, changed)
    if asked.retuning is not None:
        total += retuning.planned_work(asked.retuning, len(labels), n_measured)
    if asked.connectivity is not None and not cell.control:
        total += connectivity.planned_work(asked.connectivity, len(labels), n_measured)
    if asked.reinjection is not None:
        total += reinjection.planned_work(asked.reinjection, attack, labels, n_measured)
    if asked.membership is not None:
        total += members.planned_work(asked.membership, cell, settings, dataset)
    return total


def shadow_work(asked: Aftermath, cell: Cell, dataset: Dataset) -> Counters:
    """Work of training the shadow models of one victim, which all of its trials share."""
    return Counters() if asked.membership is None else members.shadow_work(asked.membership, cell, dataset)


def measure_aftermath(
    asked: Aftermath,
    model: Classifier,
    cell: Cell,
    settings: Mapping[str, Any],
    *,
    dataset: Dataset,
    victim: Victim,
    device: torch.device,
    memo: Memo | None = None,
) -> dict[str, Any]:
    """The columns `columns.AFTERMATH_COLUMNS` of a trial's row.

    Args:
        model: the repaired one; it stays as it is.
        settings: of the defense: adaptive shadow models are repaired with them.
        memo: of shadow models, which trials of one victim share.
    """
    begin = time.perf_counter()
    trainer = make_trainer(cell.victim, dataset, device, seed=derive_seed(cell.seed, "aftermath"))
    found: dict[str, Any] = {}
    given: dict[str, Any] = {}
    if asked.reinjection is not None or asked.retuning is not None or asked.connectivity is not None:
        given = {
            "train": dataset.train.subset(victim.attacker_indices).to(device),
            "test": dataset.test.to(device),
            "triggered": victim.triggered.to(device),
            "trainer": trainer,
            "seed": cell.seed,
        }
    own: dict[str, Any] = {"attack": cell.victim.make_attack(), "trigger": victim.trigger}
    if asked.reinjection is not None:
        curves = reinjection.reinject(asked.reinjection, model, **own, **given)
        found["reinjection"] = json.dumps([curve.record() for curve in curves])
    if asked.retuning is not None:
        found["retuning"] = json.dumps(retuning.retune(asked.retuning, model, **own, **given))
    if asked.connectivity is not None and not victim.is_control:  # which has no backdoored weights to go back to
        found["connectivity"] = json.dumps(connectivity.walk(asked.connectivity, model, victim.model, **given))
    if asked.membership is not None:
        records = members.infer_membership(
            asked.membership, model, cell, settings, dataset, victim, trainer, memo or Memo()
        )
        found["membership"] = json.dumps(records)
    done = trainer.counters
    found |= {f"aftermath_{name}": count for name, count in dataclasses.asdict(done).items()}
    found["seconds_aftermath"] = time.perf_counter() - begin
    return found
