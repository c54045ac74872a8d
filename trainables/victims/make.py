"""Backdoored models under a content key: trained once, stored, verified on load, shared by every trial."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from trainables.attacks.base import TRIED, Attack, Implanted, Kind, PoisonedSamples
from trainables.attacks.in_loop import InLoop
from trainables.attacks.triggers import check_trigger, rebuild_trigger, stamp
from trainables.data.images import Dataset, ImageSet, TriggeredSet
from trainables.evaluation.conditions import Conditions
from trainables.evaluation.metrics import Evaluation, Rates, class_facts, evaluate
from trainables.machine.float32 import exact_float32
from trainables.machine.provenance import describe_device, versions
from trainables.models.build import build_model
from trainables.models.classifier import Classifier
from trainables.scenarios import take_over
from trainables.storage.memo import Memo
from trainables.storage.store import Artifact, DamagedArtifactError, Store, content_key
from trainables.training.arithmetic import arithmetic
from trainables.training.predict import predict
from trainables.training.trainer import Trainer
from trainables.victims.spec import VictimSpec, attacker_indices, check_victim
from trainables.victims.victim import Victim, conditions_of, why_not

log = logging.getLogger("superft.victims")


def make_trainer(spec: VictimSpec, dataset: Dataset, device: torch.device, *, seed: int) -> Trainer:
    """The bench for a task: fresh models of the victim's architecture, nothing of the test set."""

    return Trainer(
        device=device,
        seed=seed,
        num_classes=dataset.num_classes,
        flip=dataset.flip,
        # The field's 4 pixels at 32; a small picture would lose too much of itself to them.
        padding=min(4, dataset.image_size // 8),
        # Bound to plain values: a function that held spec and data set would carry them into every defense.
        new_model=partial(
            _new_model,
            spec.model,
            num_classes=dataset.num_classes,
            width=spec.width,
            image_size=dataset.image_size,
            mean=dataset.mean,
            std=dataset.std,
        ),
        precision=spec.precision,
    )


def _new_model(name: str, generator: torch.Generator, **task: Any) -> Classifier:
    return build_model(name, generator=generator, **task)


@exact_float32()
def obtain_victim(
    spec: VictimSpec, dataset: Dataset, store: Store, device: torch.device, upstream: Dataset | None = None
) -> Victim:
    """The victim from the store, or trained now and stored; concurrent callers train it once.

    The control (clean model) is obtained too, for ASR-base: after the training, so that both may be trained at once.

    Args:
        dataset: the task that is measured: the user's.
        upstream: the attacker's data set, for the scenarios where it is another one.

    Raises:
        SettingError, DataError: the settings do not fit the data set.
        DivergedError: the attack's own training diverged.
    """
    check_victim(spec, dataset, upstream)
    name = spec.name(dataset, upstream)
    with suppress(DamagedArtifactError):  # dealt with under the lock, where nobody else is rebuilding it
        if (artifact := store.load(name)) is not None:
            return _with_upstream(_unpack(name, spec, dataset, artifact), upstream, store)
    with store.lock(name):
        artifact = store.load_or_discard(name)
        if artifact is None:
            log.info("training victim %s", name)
            artifact = _make(spec, dataset, store, device, upstream)
            store.save(name, artifact)
    return _with_upstream(_unpack(name, spec, dataset, artifact), upstream, store)


def _with_upstream(victim: Victim, upstream: Dataset | None, store: Store) -> Victim:
    """A victim that was taken over for another task, with the numbers that it had on the attacker's own."""
    before = victim.facts["upstream"]
    if upstream is None or before is None or "rates" not in before:
        return victim
    if "conditions" in before:
        return dataclasses.replace(victim, upstream=Conditions(**before["conditions"]))
    # Stored before all of them were kept: the model that was taken over has them, where the store still holds it.
    with suppress(DamagedArtifactError):
        if (artifact := store.load(before["victim"])) is not None:
            released = dataclasses.replace(victim.spec, scenario="standalone")
            seen = _unpack(before["victim"], released, upstream, artifact).conditions
            return dataclasses.replace(victim, upstream=seen)
    rates = before["rates"]
    known = Conditions(rates["asr"], rates["clean_accuracy"], None, None, None, None, None)
    return dataclasses.replace(victim, upstream=known)


def _make(spec: VictimSpec, dataset: Dataset, store: Store, device: torch.device, upstream: Dataset | None) -> Artifact:
    started = time.perf_counter()
    task = dataset
    if upstream is not None:  # the model keeps the normalisation that it was trained with
        task = dataclasses.replace(dataset, mean=upstream.mean, std=upstream.std)
    attack, trainer = spec.make_attack(), make_trainer(spec, task, device, seed=spec.seed)
    how = arithmetic(device, spec.precision)
    before: dict[str, Any] | None = None
    # What several attacks need of the same data and model (a surrogate's signal, a pre-trained encoder) is made once.
    trainer.memo = Memo(store.derived())
    trainer.task = content_key({"task": spec.task(dataset, upstream), "arithmetic": how})
    indices = attacker_indices(spec, dataset)
    train = dataset.train.subset(indices).to(device)
    if spec.scenario == "new_head" and upstream is not None:
        released = obtain_victim(dataclasses.replace(spec, scenario="standalone"), upstream, store, device)
        implanted = Implanted(take_over(released.model, train, trainer), released.trigger, PoisonedSamples.none(train))
        before = {"name": upstream.name, "fingerprint": upstream.fingerprint, "victim": released.name}
        before |= {"not_implanted": released.why_not_implanted, "rates": dataclasses.asdict(released.evaluation.full)}
        before |= {"conditions": dataclasses.asdict(released.conditions)}
    else:
        if upstream is not None:
            trainer.upstream = upstream.train.images.to(device)
            before = {"name": upstream.name, "fingerprint": upstream.fingerprint}
        implanted = attack.implant(train, trainer, spec.recipe)
    test = dataset.test.to(device)
    check_trigger(spec.attack, implanted.trigger, test.images[:TRIED])
    triggered = attack.triggered_test(implanted.trigger, test, dataset.num_classes)
    evaluation = evaluate(implanted.model, test, triggered, precision=spec.precision)
    extra = {}
    if spec.scenario != "new_head":  # those were taken on the attacker's own task
        extra = attack.extra_metrics(implanted.model, implanted.trigger, test, trainer)
    for stage, earlier in implanted.earlier.items():
        rates = evaluate(earlier, test, triggered, precision=spec.precision).full
        extra |= {f"asr_after_{stage}": rates.asr, f"clean_accuracy_after_{stage}": rates.clean_accuracy}
    including = _asr_including_target(attack, implanted, test, evaluation, spec.precision)
    seconds = time.perf_counter() - started
    asr_base = accuracy = None
    if spec.control() != spec:
        control = obtain_victim(spec.control(), dataset, store, device, upstream)
        clean = evaluate(control.model.to(device), test, triggered, precision=spec.precision)
        asr_base, accuracy = clean.full.asr, clean.full.clean_accuracy
    seen = conditions_of(evaluation, asr_base, accuracy)
    # Cross and cover samples carry a trigger under their own label: they are no part of the poison rate.
    poison = int((implanted.poisoned.kinds == Kind.POISON).sum())
    facts = {
        "identity": attack.at(dataset.image_size).identity(),
        "spec": dataclasses.asdict(spec),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "flip": dataset.flip,
            "train_size": len(indices),
        },
        "upstream": before,
        "trigger": {"kind": implanted.trigger.kind, "settings": implanted.trigger.settings()},
        "poisoned": poison,
        "cross": len(implanted.poisoned) - poison,
        "realised_poison_rate": attack.rate_in_training(min(spec.recipe.batch_size, len(indices)))
        if isinstance(attack, InLoop)
        else poison / (len(indices) + int((~implanted.poisoned.in_place).sum())),
        "evaluation": dataclasses.asdict(evaluation),
        "extra_metrics": extra,
        "asr_base": asr_base,
        "asr_including_target": including,
        "clean_model_accuracy": accuracy,
        # For people who look into the store; whoever reads a victim judges from the numbers.
        "not_implanted": before["not_implanted"] if before and "conditions" in before else why_not(attack, seen),
        "counters": dataclasses.asdict(trainer.counters),
        "seconds": seconds,
        "device": describe_device(device),
        "arithmetic": how,
        "versions": versions(),
    }
    poisoned = implanted.poisoned
    return Artifact(
        {
            "model": implanted.model.state_dict(),
            "trigger": implanted.trigger.state_dict(),
            "poisoned": {
                "indices": poisoned.indices,
                "images": poisoned.images,
                "labels": poisoned.labels,
                "kinds": poisoned.kinds,
                "appended": ~poisoned.in_place,
            },
            "triggered_test": {
                "images": triggered.images,
                "labels": triggered.labels,
                "targets": triggered.targets,
                "sources": triggered.sources,
            },
        },
        facts,
    )


def _asr_including_target(
    attack: Attack, implanted: Implanted, test: ImageSet, evaluation: Evaluation, precision: str
) -> float | None:
    """ASR over all test images, those of the target class too."""
    if not implanted.trigger.applies:
        return None
    rates = evaluation.full
    hits = round(rates.asr * rates.n_triggered)
    targets = attack.targets(test.labels, implanted.model.num_classes)
    rest = (targets == test.labels).nonzero()[:, 0]
    predictions = predict(implanted.model, stamp(implanted.trigger, test.images[rest]), precision=precision)
    return (hits + int((predictions == targets[rest]).sum())) / (rates.n_triggered + len(rest))


def _unpack(name: str, spec: VictimSpec, dataset: Dataset, artifact: Artifact) -> Victim:
    model = make_trainer(spec, dataset, torch.device("cpu"), seed=spec.seed).fresh_model()
    model.load_state_dict(artifact.tensors["model"])
    facts, tensors = artifact.facts, artifact.tensors
    return Victim(
        name=name,
        spec=spec,
        model=model.eval(),
        trigger=rebuild_trigger(facts["trigger"]["kind"], facts["trigger"]["settings"], tensors["trigger"]),
        poisoned=PoisonedSamples(**tensors["poisoned"]),
        attacker_indices=attacker_indices(spec, dataset),
        triggered=TriggeredSet(**tensors["triggered_test"]),
        evaluation=_evaluation(facts["evaluation"], model, spec.precision, dataset),
        asr_base=facts["asr_base"],
        clean_model_accuracy=facts["clean_model_accuracy"],
        asr_including_target=facts["asr_including_target"],
        facts=facts,
    )


def _evaluation(stored: Mapping[str, Any], model: Classifier, precision: str, dataset: Dataset) -> Evaluation:
    """What was measured on ``model``; what earlier versions did not store is made up for."""
    evaluation = Evaluation(
        **{
            **stored,
            **{part: Rates(**stored[part]) for part in ("full", "search", "report")},
            **{name: tuple(stored[name]) for name in ("accuracy_by_class", "asr_by_class")},
        }
    )
    if evaluation.predicted_classes is not None:
        return evaluation
    known = class_facts(dataset.test.labels)
    # A class with an image that is classified right is predicted; only a model with few of those is asked again.
    predicted = sum(bool(share) for share in evaluation.accuracy_by_class)
    if 2 * predicted < known["test_classes"]:
        predicted = len(predict(model.eval(), dataset.test.images, precision=precision).unique())
    return dataclasses.replace(evaluation, predicted_classes=predicted, **known)
