"""Backdoored models under a content key: trained once, stored, verified on load, shared by every trial."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import ATTACKS, Attack, Kind, PoisonedSamples, Trigger, rebuild_trigger
from trainables.data import CleanSplit, DataError, Dataset, ImageSet, split_clean
from trainables.memo import Memo
from trainables.metrics import Evaluation, Rates, TriggeredSet, evaluate, report_half
from trainables.models import build_model
from trainables.models.classifier import Classifier
from trainables.provenance import describe_device, versions
from trainables.recipes import TrainingRecipe
from trainables.store import Artifact, DamagedArtifactError, Store, content_key
from trainables.trainer import Trainer

log = logging.getLogger("superft.victims")

# Part of every key: raise it when a change makes stored victims wrong.
SCHEMA = 1
# An attack that stays below these is no backdoor to be removed (TrojanZoo's rule for the accuracy).
IMPLANTED_ASR = 0.5
IMPLANTED_ACCURACY_DROP = 0.05

CLEAN_SOURCES = ("overlap", "unpoisoned", "heldout")


@dataclass(frozen=True)
class VictimSpec:
    """All that decides a victim.

    Args:
        attack: registered name; ``clean`` is the control.
        attack_settings: over the attack's defaults.
        model, width: architecture and channels of its stem (None: its own).
        recipe: how it is trained.
        seed: of poisoning, initialisation and training.
        precision: of the arithmetic, see `training.autocast`.
        reserved_fraction: share of every class kept from the attacker for the defender (``clean_source=heldout``).
    """

    attack: str
    model: str
    recipe: TrainingRecipe
    seed: int = 0
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    precision: str = "auto"
    reserved_fraction: float | None = None

    def make_attack(self) -> Attack:
        return ATTACKS.create(self.attack, self.attack_settings)

    def control(self) -> VictimSpec:
        """The clean model that this victim's ASR-base and clean accuracy are read against."""
        if not ATTACKS.get(self.attack).implants_backdoor:
            return self
        name, settings = self.make_attack().control()
        return dataclasses.replace(self, attack=name, attack_settings=settings)

    def name(self, dataset: Dataset) -> str:
        """Readable prefix and content key: the artifact's name in the store."""
        identity = {"schema": SCHEMA, **self.make_attack().identity(), **self._conditions(dataset)}
        prefix = "".join(letter if letter.isalnum() else "-" for letter in dataset.name.rsplit("/", 1)[-1])[:24]
        return f"{self.attack}-{prefix}-{self.model}-seed{self.seed}-{content_key(identity)}"

    def task(self, dataset: Dataset) -> str:
        """Key of all that attacks on the same task have in common: what they make may be shared under it."""
        return content_key(self._conditions(dataset))

    def _conditions(self, dataset: Dataset) -> dict[str, Any]:
        """All that decides a victim beside its attack, JSON-able."""
        return {
            "data": dataset.fingerprint,
            "classes": dataset.num_classes,
            "model": self.model,
            "width": self.width,
            "recipe": dataclasses.asdict(self.recipe),
            "flip": dataset.flip,
            "mean": dataset.mean,
            "std": dataset.std,
            "seed": self.seed,
            "precision": self.precision,
            "reserved_fraction": self.reserved_fraction,
        }


@dataclass(frozen=True)
class Victim:
    """A backdoored model with everything that attacker and evaluator know of it.

    Args:
        name: of the artifact (content key).
        spec: what it was made from.
        model: on the CPU, in eval mode.
        trigger: rebuildable anywhere.
        poisoned: what differs from the attacker's clean training set.
        attacker_indices: the attacker's training set within the data set's, int64.
        triggered: the stored triggered test set.
        evaluation: of this model, before any defense.
        asr_base: success of the trigger on a clean model; None for the control itself.
        clean_model_accuracy: of the control.
        facts: provenance: versions, device, seconds, counters.
    """

    name: str
    spec: VictimSpec
    model: Classifier
    trigger: Trigger
    poisoned: PoisonedSamples
    attacker_indices: Tensor
    triggered: TriggeredSet
    evaluation: Evaluation
    asr_base: float | None
    clean_model_accuracy: float | None
    facts: dict[str, Any]

    @property
    def implanted(self) -> bool:
        """Whether there is a backdoor to remove: it works, and the model is about as good as a clean one."""
        attack = ATTACKS.get(self.spec.attack)
        if not (attack.implants_backdoor and attack.must_work):
            return True
        reference = self.clean_model_accuracy if self.clean_model_accuracy is not None else 0.0
        rates = self.evaluation.full
        return rates.asr >= IMPLANTED_ASR and rates.clean_accuracy >= reference - IMPLANTED_ACCURACY_DROP

    def poisoned_training_set(self, dataset: Dataset) -> ImageSet:
        """The training set as the attacker releases it."""
        return self.poisoned.apply(dataset.train.subset(self.attacker_indices))

    def clean_split(self, dataset: Dataset, fraction: float, source: str) -> CleanSplit:
        """What the defender holds of the clean training images.

        Args:
            source: ``overlap`` (clean versions of the attacker's images, poisoned ones included), ``unpoisoned``
                (only images the attacker left alone), ``heldout`` (images the attacker never had).

        Raises:
            DataError: unknown source, ``heldout`` beyond what the attacker was denied, or a class is left empty.
        """
        if source not in CLEAN_SOURCES:
            raise DataError(f"clean_source must be one of {', '.join(CLEAN_SOURCES)}, got {source!r}")
        # Smaller draws of one seed lie within larger ones, so any fraction up to the reserved one is held out.
        if source == "heldout" and fraction > (self.spec.reserved_fraction or 0.0):
            raise DataError(
                f"clean_source heldout with clean_fraction {fraction} needs a victim with a reserved_fraction of at "
                f"least that, got {self.spec.reserved_fraction}"
            )
        pool = None
        if source == "unpoisoned":
            untouched = torch.ones(len(dataset.train), dtype=torch.bool)
            untouched[self.attacker_indices[self.poisoned.indices[self.poisoned.in_place]]] = False
            pool = untouched.nonzero()[:, 0]
        return split_clean(
            dataset.train.labels, fraction, num_classes=dataset.num_classes, seed=self.spec.seed, pool=pool
        )


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


def attacker_indices(spec: VictimSpec, dataset: Dataset) -> Tensor:
    """The attacker's part of the training set: all of it, or what `reserved_fraction` leaves."""
    if spec.reserved_fraction is None:
        return torch.arange(len(dataset.train))
    reserved = split_clean(
        dataset.train.labels, spec.reserved_fraction, num_classes=dataset.num_classes, seed=spec.seed
    )
    left = torch.ones(len(dataset.train), dtype=torch.bool)
    left[reserved.all] = False
    indices = left.nonzero()[:, 0]
    if len(dataset.train.labels[indices].unique()) < dataset.num_classes:
        raise DataError(
            f"clean_source heldout with clean_fraction {spec.reserved_fraction} leaves the attacker a class without "
            "images; use a smaller clean_fraction"
        )
    return indices


def check_victim(spec: VictimSpec, dataset: Dataset) -> None:
    """Refuse a victim that cannot be made of this data set, before any work (SettingError, DataError)."""
    indices, attack = attacker_indices(spec, dataset), spec.make_attack()
    attack.check(dataset.train.labels[indices], dataset.num_classes, dataset.image_size)
    in_report = report_half(len(dataset.test))
    measured = attack.targets(dataset.test.labels, dataset.num_classes) != dataset.test.labels
    if not (measured & in_report).any() or not (measured & ~in_report).any():
        raise DataError(
            f"data set {dataset.name}: {len(dataset.test)} test images leave half of the test set without an image to "
            "trigger; use a larger test set"
        )


def obtain_victim(spec: VictimSpec, dataset: Dataset, store: Store, device: torch.device) -> Victim:
    """The victim from the store, or trained now and stored; concurrent callers train it once.

    The control (clean model) is obtained too, for ASR-base: after the training, so that both may be trained at once.

    Raises:
        SettingError, DataError: the settings do not fit the data set.
        DivergedError: the attack's own training diverged.
    """
    check_victim(spec, dataset)
    name = spec.name(dataset)
    with suppress(DamagedArtifactError):  # dealt with under the lock, where nobody else is rebuilding it
        if (artifact := store.load(name)) is not None:
            return _unpack(name, spec, dataset, artifact)
    with store.lock(name):
        artifact = store.load_or_discard(name)
        if artifact is None:
            log.info("training victim %s", name)
            artifact = _make(spec, dataset, store, device)
            store.save(name, artifact)
    return _unpack(name, spec, dataset, artifact)


def _make(spec: VictimSpec, dataset: Dataset, store: Store, device: torch.device) -> Artifact:
    started = time.perf_counter()
    attack, trainer = spec.make_attack(), make_trainer(spec, dataset, device, seed=spec.seed)
    # What several attacks need of the same data and model (a surrogate's signal, a pre-trained encoder) is made once.
    trainer.memo, trainer.task = Memo(store.derived()), spec.task(dataset)
    indices = attacker_indices(spec, dataset)
    implanted = attack.implant(dataset.train.subset(indices).to(device), trainer, spec.recipe)
    test = dataset.test.to(device)
    triggered = attack.triggered_test(implanted.trigger, test, dataset.num_classes)
    evaluation = evaluate(implanted.model, test, triggered, precision=spec.precision)
    extra = attack.extra_metrics(implanted.model, implanted.trigger, test, trainer)
    for stage, earlier in implanted.earlier.items():
        rates = evaluate(earlier, test, triggered, precision=spec.precision).full
        extra |= {f"asr_after_{stage}": rates.asr, f"clean_accuracy_after_{stage}": rates.clean_accuracy}
    seconds = time.perf_counter() - started
    asr_base = accuracy = None
    if spec.control() != spec:
        control = obtain_victim(spec.control(), dataset, store, device)
        clean = evaluate(control.model.to(device), test, triggered, precision=spec.precision)
        asr_base, accuracy = clean.full.asr, clean.full.clean_accuracy
    # Cross and cover samples carry a trigger under their own label: they are no part of the poison rate.
    poison = int((implanted.poisoned.kinds == Kind.POISON).sum())
    facts = {
        "identity": attack.identity(),
        "spec": dataclasses.asdict(spec),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint, "train_size": len(indices)},
        "trigger": {"kind": implanted.trigger.kind, "settings": implanted.trigger.settings()},
        "poisoned": poison,
        "cross": len(implanted.poisoned) - poison,
        "realised_poison_rate": poison / (len(indices) + int((~implanted.poisoned.in_place).sum())),
        "evaluation": dataclasses.asdict(evaluation),
        "extra_metrics": extra,
        "asr_base": asr_base,
        "clean_model_accuracy": accuracy,
        "counters": dataclasses.asdict(trainer.counters),
        "seconds": seconds,
        "device": describe_device(device),
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
        evaluation=_evaluation(facts["evaluation"]),
        asr_base=facts["asr_base"],
        clean_model_accuracy=facts["clean_model_accuracy"],
        facts=facts,
    )


def _evaluation(stored: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        full=Rates(**stored["full"]),
        search=Rates(**stored["search"]),
        report=Rates(**stored["report"]),
        false_target_rate=stored["false_target_rate"],
    )
