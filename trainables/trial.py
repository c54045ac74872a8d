"""One trial as a plain call: take a victim, repair a copy, measure it, return one flat row. No Ray needed."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from trainables.aftermath import measure_aftermath
from trainables.attacks.base import ATTACKS
from trainables.data.images import DataError, Dataset
from trainables.data.sources.base import SOURCES
from trainables.defender_data import begins_with_fresh_head, defender_images, source_key
from trainables.defenses.base import DEFENSES, Assets, CleanData, Defense, NoData, PoisonedData, Repair
from trainables.defenses.none import NoDefense
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.evaluation.curve import Curve, Every
from trainables.evaluation.detection import detection_columns
from trainables.evaluation.metrics import Evaluation, evaluate
from trainables.job import Cell
from trainables.machine.float32 import exact_float32
from trainables.machine.provenance import code, describe_device, peak_memory_bytes, versions
from trainables.models.build import MODELS
from trainables.models.classifier import Classifier
from trainables.models.encoder import seed_dropout
from trainables.plugins.modules import PluginError
from trainables.plugins.origin import origin, used
from trainables.registry import Registry
from trainables.seeding import derive_seed
from trainables.storage.memo import Memo
from trainables.storage.store import content_key
from trainables.training.arithmetic import arithmetic, arithmetic_text
from trainables.training.loop import Counters, DivergedError
from trainables.training.movement import Movement, Snapshot, movement
from trainables.training.watch import watching
from trainables.trial_result import TrialResult, as_json_shares, rates
from trainables.victims.make import make_trainer
from trainables.victims.measured_again import check_measured_again
from trainables.victims.victim import Victim


def plugins_of(cell: Cell) -> str:
    """Names and versions of the plug-ins that a cell's attack, defense, model and data come from; mostly none."""
    things: list[tuple[Registry[Any], str]] = [
        (ATTACKS, cell.victim.attack),
        (DEFENSES, cell.defense),
        (MODELS, cell.victim.model),
        *((SOURCES, data.name) for data in (cell.data, cell.upstream) if data is not None),
    ]
    return used(things)


def defender_seed(cell: Cell) -> int:
    """Seed of a repair: under the victim's own, `Trainer.generator` would draw the attacker's poison once more."""
    own = (cell.defense_seed,) if cell.defense_seed else ()
    return derive_seed(cell.seed, "defense", *own)


def assets_for(defense: Defense, cell: Cell, dataset: Dataset, victim: Victim, device: torch.device) -> Assets:
    """Exactly what this defender owns, and nothing else (the leak rule).

    Raises:
        DataError: the defender needs what this victim does not come with.
    """
    if defense.owns is CleanData:
        train, validation = defender_images(cell, dataset, victim)
        return CleanData(train.to(device), validation.to(device))
    if defense.owns is PoisonedData:
        # A clean model comes with the clean training set: what a detector finds there is a false alarm.
        without = len(victim.poisoned) == 0 and not victim.is_control
        if without and ATTACKS.get(victim.spec.attack).implants_backdoor:
            raise DataError(
                f"defense {defense.name} needs the poisoned training set, and victim {victim.name} comes without one "
                "(its backdoor was not planted by poisoned data)"
            )
        return PoisonedData(victim.poisoned_training_set(dataset).to(device))
    return NoData()


@exact_float32()
def run_trial(
    cell: Cell,
    settings: Mapping[str, Any],
    *,
    dataset: Dataset,
    victim: Victim,
    device: torch.device,
    memo: Memo | None = None,
    counters: Counters | None = None,
    curve: Every | None = None,
    aftermath: Aftermath | None = None,
    keep: Callable[[Classifier], Mapping[str, Any] | None] | None = None,
) -> TrialResult:
    """Repair a copy of the victim with the cell's defense under ``settings``, and measure it.

    Divergence is a result: status ``diverged`` with the worst rates (ASR 1, accuracies 0).

    Args:
        memo: of what trials of one victim share; None: nothing is taken from other trials or kept for them.
        counters: to count the defense's work in, for a caller that may cut the trial short.
        curve: how often the model is measured along the repair; None: only in the end.
        aftermath: what is asked of the repaired model once all else is measured; it changes no other number.
        keep: is given the repaired model once all has been measured; what it returns are further columns of the row.
            Its time counts nowhere.

    Raises:
        SettingError: the settings are not the defense's.
        DataError: the victim comes without something that the defense needs, or, under ``none``, does not measure as
            it did when it was stored.
        PluginError: what `repair` hands back is no `Repair` of such a model.
    """
    started, clock = datetime.now(UTC), time.perf_counter
    begin = clock()
    defense = DEFENSES.create(cell.defense, settings)
    how = arithmetic(device, cell.victim.precision)
    result = TrialResult(
        cell=cell,
        settings=dict(settings),
        resolved_settings=json.dumps(dataclasses.asdict(defense), sort_keys=True),
        train_size=len(victim.attacker_indices),
        device=describe_device(device),
        versions=versions(),
        **_target(cell, dataset),
        image_size=dataset.image_size,
        flip=dataset.flip,
        threads=torch.get_num_threads(),
        precision=how["precision"],
        code=code(),
        plugins=plugins_of(cell),
        victim=victim.name,
        victim_trained_on=victim.trained_on,
        started=started.isoformat(timespec="seconds"),
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = make_trainer(cell.victim, dataset, device, seed=defender_seed(cell))
    if counters is not None:
        trainer.counters = counters
    if memo is not None:
        trainer.memo, trainer.task = memo, _task(cell, defense, dataset, victim, how)
    model = copy.deepcopy(victim.model).to(device)
    seed_dropout(model, trainer.generator("dropout"))
    if begins_with_fresh_head(defense, cell):
        model.reset_head(trainer.generator("weights", "fresh-head"))
    assets, before = assets_for(defense, cell, dataset, victim, device), Snapshot.of(model)
    ready = clock()
    result.seconds_setup = ready - begin

    evaluation: Evaluation | None = None
    evaluation_counters, repaired = type(trainer.counters)(), None

    def measure(measured: Classifier) -> Evaluation:
        return evaluate(
            measured,
            dataset.test.to(device),
            victim.triggered.to(device),
            precision=cell.victim.precision,
            counters=evaluation_counters,
        )

    points = None if curve is None else Curve(curve, measure, lambda: _wait_for(device))
    try:
        if points is not None:
            points.begin(model)
        with watching(None if points is None else points.look):
            repair = defense.repair(model, assets, trainer)
        check_repair(defense, repair, dataset)
        _wait_for(device)
        result.status, result.notes, repaired = repair.status, repair.notes, repair.model
        result.detection = _detection(repair, victim, dataset)
        result.seconds_repair = clock() - ready - (points.seconds if points is not None else 0.0)
        if not isinstance(defense, NoDefense):  # which is not meant to move anything
            _note_movement(result, movement(before, repair.model, repair.history.loss, plain_loss=defense.plain_loss))
        evaluation = measure(repair.model)
        if isinstance(defense, NoDefense):  # it changed nothing, so this measures the victim once more, for nothing
            check_measured_again(victim, evaluation, dataset, device)
    except DivergedError as error:
        result.status, result.error = "diverged", str(error)
        if repaired is None:
            result.seconds_repair = clock() - ready - (points.seconds if points is not None else 0.0)
    result.eval_forward_samples = evaluation_counters.forward_samples
    if points is not None:
        result.curve = points.end(repaired, trainer.counters.steps, evaluation)
    result.seconds_evaluate = clock() - ready - result.seconds_repair
    if (why := victim.why_not_implanted) is not None:  # whatever became of the model: there was nothing to remove
        result.status, result.error = "backdoor_not_implanted", "; ".join(filter(None, (why, result.error)))
    result.metrics = rates(evaluation, victim)
    if evaluation is not None:
        result.by_class = {
            "accuracy_by_class": as_json_shares(evaluation.accuracy_by_class),
            "asr_by_class": as_json_shares(evaluation.asr_by_class),
        }
    if evaluation is not None:  # a constant predictor's ASR is 0 or 1 by accident
        result.collapsed = evaluation.why_collapsed is not None
    if victim.trained_on not in ("", arithmetic_text(how)):
        result.flags.append("victim_trained_otherwise")
    result.flags += sorted({f"{name.rpartition('-')[0]}_reused" for name in trainer.reused})
    for counted in trainer.reused.values():
        result.reused_forward_samples += counted.forward_samples
        result.reused_backward_samples += counted.backward_samples
        result.reused_input_backward_samples += counted.input_backward_samples
    if trainer.made or trainer.reused:
        reused = {
            name: [counted.forward_samples, counted.backward_samples, counted.input_backward_samples]
            for name, counted in trainer.reused.items()
        }
        result.shared_work = json.dumps({"made": trainer.made, "reused": reused})
    counters, result.batch = trainer.counters, trainer.batch
    result.steps, result.forward_samples = counters.steps, counters.forward_samples
    result.backward_samples, result.input_backward_samples = counters.backward_samples, counters.input_backward_samples
    result.peak_memory_bytes = peak_memory_bytes(device)
    result.wall_seconds = clock() - begin
    if aftermath is not None and evaluation is not None:
        given: dict[str, Any] = {"dataset": dataset, "victim": victim, "device": device, "memo": memo}
        result.aftermath = measure_aftermath(aftermath, repair.model, cell, settings, **given)
    if keep is not None and evaluation is not None:  # last: whatever comes of it, the row is whole
        result.kept = dict(keep(repair.model) or {})
    return result


@exact_float32()
def judge_detectors(
    cell: Cell,
    proposed: Sequence[Mapping[str, Any]],
    *,
    dataset: Dataset,
    victim: Victim,
    device: torch.device,
    memo: Memo,
) -> tuple[list[dict[str, Any]], Counters]:
    """What the cell's defense, one that `detects`, would leave out under each of some settings; nothing is trained.

    The victim's features are computed once for all of them, and kept in ``memo`` for the trials. The numbers rest on
    the poison mask, which no defender has.

    Returns:
        The columns of `detection.detection_columns` for each of the settings, and the work that was done now.

    Raises:
        SettingError, DataError: as in `run_trial`.
    """
    found = []
    trainer = make_trainer(cell.victim, dataset, device, seed=defender_seed(cell))
    trainer.memo = memo
    model = copy.deepcopy(victim.model).to(device)
    for settings in proposed:
        defense = DEFENSES.create(cell.defense, settings)
        trainer.task = _task(cell, defense, dataset, victim, arithmetic(device, cell.victim.precision))
        assets = assets_for(defense, cell, dataset, victim, device)
        found.append(_detection(defense.detect(model, assets, trainer), victim, dataset))
    return found, trainer.counters


def _wait_for(device: torch.device) -> None:
    """Until the device has done what it was given: a clock that is read now tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _note_movement(result: TrialResult, found: Movement) -> None:
    result.moved, result.loss_rise = found.moved, found.loss_rise
    result.displacement, result.displacement_share = found.displacement, found.displacement_share


def _detection(repair: Repair, victim: Victim, dataset: Dataset) -> dict[str, Any]:
    targets = victim.triggered.targets
    return detection_columns(
        repair,
        victim.poisoned.kinds_of(len(victim.attacker_indices)),
        targets if ATTACKS.get(victim.spec.attack).implants_backdoor else targets[:0],
        victim.poisoned.labels_of(dataset.train.labels[victim.attacker_indices]),
    )


def check_repair(defense: Defense, repair: Any, dataset: Dataset) -> None:
    """Refuse what a defense must not hand back, before it is measured.

    Raises:
        PluginError: no `Repair`, or of a model for another task.
        DivergedError: weights that are not finite; of NaN outputs argmax would make class 0, which is often the target.
    """
    name = f"defense {defense.name}: repair"
    if not isinstance(repair, Repair):
        raise PluginError(f"{name} must return a Repair, got {type(repair).__name__}")
    if not isinstance(repair.model, Classifier):
        raise PluginError(f"{name} must return a Repair whose model is a Classifier, got {type(repair.model).__name__}")
    if repair.status not in ("ok", "abstained"):
        raise PluginError(f"{name} must say status ok or abstained, got {repair.status!r}")
    for key, value in repair.model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DivergedError(f"the repaired model's {key} is not finite")
    if repair.model.num_classes != dataset.num_classes:
        raise PluginError(
            f"{name} must return a model for {dataset.num_classes} classes, got one for {repair.model.num_classes}"
        )


def _target(cell: Cell, dataset: Dataset) -> dict[str, Any]:
    """Label and name of the class that the attacker wants, where it is one and the user's data set has it."""
    attack = cell.victim.make_attack()
    if not attack.implants_backdoor or attack.label_mode != "all_to_one":
        return {}
    label = attack.target_label
    named = cell.victim.scenario != "new_head" and label < dataset.num_classes
    return {"target_label": label, "target_class": dataset.classes[label] if named else None}


def _task(cell: Cell, defense: Defense, dataset: Dataset, victim: Victim, how: Mapping[str, Any]) -> str:
    """Key of all that a defense is given beside its settings: trials that share it may share results.

    The victim's facts are in it because a victim that was trained again, after damage, may differ in its last bits.
    So may what was computed with other threads: a row must not depend on who computed before.
    """
    held: list[Any] = []
    if defense.owns is CleanData:
        held = [cell.clean_fraction, cell.clean_source, cell.fresh_head, *source_key(cell, dataset)]
    given: dict[str, Any] = {"victim": victim.name, "facts": victim.facts, "seed": defender_seed(cell), "held": held}
    given["arithmetic"] = dict(how)
    if (by := origin(DEFENSES, cell.defense)) is not None:  # what edited code makes is not what it made before
        given["defense_by"] = by
    return content_key(given)
