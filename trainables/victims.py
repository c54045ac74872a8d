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

from trainables.attacks.base import (
    ATTACKS,
    TRIED,
    Attack,
    Implanted,
    Kind,
    PoisonedSamples,
    Trigger,
    check_trigger,
    rebuild_trigger,
    stamp,
)
from trainables.data.images import DataError, Dataset, ImageSet, TriggeredSet
from trainables.data.split import CleanSplit, split_clean
from trainables.evaluation.conditions import Conditions, why_not_implanted
from trainables.evaluation.metrics import Evaluation, Rates, class_facts, evaluate, report_half
from trainables.machine.float32 import exact_float32
from trainables.machine.provenance import describe_device, versions
from trainables.models.build import MODELS, build_model
from trainables.models.classifier import Classifier
from trainables.plugins.origin import origin
from trainables.scenarios import PROBE, ScenarioName, check_scenario, take_over
from trainables.seeding import derive_seed
from trainables.storage.memo import Memo
from trainables.storage.store import Artifact, DamagedArtifactError, Store, content_key
from trainables.training.arithmetic import arithmetic, arithmetic_text
from trainables.training.predict import predict
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

log = logging.getLogger("superft.victims")

# Part of every key: raise it when a change makes stored victims wrong.
SCHEMA = 2
# How far a victim may move between two measurements on different machines, see `check_measured_again`.
SLACK_IMAGES, SLACK_SHARE, SLACK_STAMPED = 3, 0.01, 32

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
        scenario: what the user's data set is to the attacker. ``standalone``: the task that was attacked. ``new_head``:
            another one; the user puts a new head on the model (transfer). ``encoder``: another one; the attacker
            released an encoder, trained without labels. The last two need an upstream data set.
    """

    attack: str
    model: str
    recipe: TrainingRecipe
    seed: int = 0
    attack_settings: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    precision: str = "auto"
    reserved_fraction: float | None = None
    scenario: ScenarioName = "standalone"

    def __hash__(self) -> int:  # the settings are a mapping, which has none
        return hash((self.attack, self.model, self.recipe, self.seed, self.width, self.scenario))

    def make_attack(self) -> Attack:
        """The attack with its settings (SettingError)."""
        return ATTACKS.create(self.attack, self.attack_settings)

    def control(self) -> VictimSpec:
        """The clean model that this victim's ASR-base and clean accuracy are read against."""
        if not ATTACKS.get(self.attack).implants_backdoor:
            return self
        name, settings = self.make_attack().control()
        return dataclasses.replace(self, attack=name, attack_settings=settings)

    @property
    def releases_training_set(self) -> bool:
        """Whether the training set comes with the model: under a new head it is that of another task."""
        attack = self.make_attack()
        return not attack.implants_backdoor or (attack.releases_training_set and self.scenario != "new_head")

    def name(self, dataset: Dataset, upstream: Dataset | None = None) -> str:
        """Readable prefix and content key: the artifact's name in the store."""
        attack = self.make_attack().at(dataset.image_size)
        own = {key: value for key, value in attack.identity().items() if attack.came_later.get(key, ...) != value}
        identity = {
            "schema": SCHEMA,
            **own,
            **self._conditions(dataset, upstream),
        }
        # An edited trigger is another trigger, whatever its settings say.
        if (by := origin(ATTACKS, self.attack)) is not None:
            identity["attack_by"] = by
        prefix = "".join(letter if letter.isalnum() else "-" for letter in dataset.name.rsplit("/", 1)[-1])[:24]
        return f"{self.attack}-{prefix}-{self.model}-seed{self.seed}-{content_key(identity)}"

    def task(self, dataset: Dataset, upstream: Dataset | None = None) -> str:
        """Key of all that attacks on the same task have in common: what they make may be shared under it."""
        return content_key(self._conditions(dataset, upstream))

    def _conditions(self, dataset: Dataset, upstream: Dataset | None) -> dict[str, Any]:
        """All that decides a victim beside its attack, JSON-able."""
        before: dict[str, Any] = {}
        if upstream is not None:
            before = {
                "scenario": self.scenario,
                "upstream": upstream.fingerprint,
                "upstream_mean": upstream.mean,
                "upstream_std": upstream.std,
                "probe": dataclasses.asdict(PROBE) if self.scenario == "new_head" else None,
            }
        if (by := origin(MODELS, self.model)) is not None:
            before["model_by"] = by
        return {
            **before,
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
        attacker_indices: the attacker's training set within the data set's, int64; all of it where the attacker had
            another data set.
        triggered: the stored triggered test set.
        evaluation: of this model, before any defense.
        asr_base: success of the trigger on a clean model; None for the control itself.
        asr_including_target: success when test images that already have the target label are counted too; higher, and
            not to be mixed with ASR. Some papers report this one. None: the trigger is not known.
        clean_model_accuracy: of the control.
        facts: provenance: versions, device, threads and precision (``arithmetic``), seconds, counters.
        is_control: whether the clean model stands in the victim's place, see `as_control`.
        upstream: of a model that was taken over for another task, the numbers on the attacker's own.
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
    asr_including_target: float | None
    facts: dict[str, Any]
    is_control: bool = False
    upstream: Conditions | None = None

    @property
    def conditions(self) -> Conditions:
        """The numbers that decide whether there is a backdoor; after `as_control` they are the clean model's.

        Of a model that was taken over for another task they are those on the attacker's own task: whether the backdoor
        survives the new head is a result.
        """
        if self.upstream is not None:
            return self.upstream
        return _conditions_of(self.evaluation, self.asr_base, self.clean_model_accuracy)

    @property
    def why_not_implanted(self) -> str | None:
        """Which condition for a backdoor failed, in words; None if there is one to remove, or none was meant."""
        return None if self.is_control else _why_not(ATTACKS.get(self.spec.attack), self.conditions)

    @property
    def implanted(self) -> bool:
        """Whether there was a backdoor to remove (or none was meant), judged from the stored numbers."""
        return self.why_not_implanted is None

    @property
    def trained_on(self) -> str:
        """Kind of device, threads and precision that it was trained with, in words; empty: it does not say."""
        how = self.facts.get("arithmetic")
        return "" if how is None else arithmetic_text(how)

    def as_control(self, clean: Victim, evaluation: Evaluation) -> Victim:
        """The clean model in this victim's place: what a defense does to it under the same trigger.

        Args:
            evaluation: of ``clean``, on this victim's triggered test set.
        """
        return dataclasses.replace(
            self,
            name=f"{clean.name} under {self.name}",
            model=clean.model,
            poisoned=clean.poisoned,
            evaluation=evaluation,
            is_control=True,
        )

    def poisoned_training_set(self, dataset: Dataset) -> ImageSet:
        """The training set as the attacker releases it."""
        whole = len(self.attacker_indices) == len(dataset.train)  # `apply` copies once anyway
        return self.poisoned.apply(dataset.train if whole else dataset.train.subset(self.attacker_indices))

    def clean_split(self, dataset: Dataset, fraction: float, source: str, defense_seed: int = 0) -> CleanSplit:
        """What the defender holds of the clean training images.

        Args:
            fraction: of every class, in (0, 1].
            source: ``overlap`` (clean versions of the attacker's images, poisoned ones included), ``unpoisoned``
                (only images the attacker left alone), ``heldout`` (images the attacker never had).
            defense_seed: another one draws other images (``heldout``: of those that the attacker was denied).

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
        seed = self.spec.seed
        if defense_seed:
            seed = derive_seed(seed, "defense-seed", defense_seed)
            if source == "heldout":
                pool = reserved_indices(self.spec, dataset)
        return split_clean(dataset.train.labels, fraction, num_classes=dataset.num_classes, seed=seed, pool=pool)


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
    left = torch.ones(len(dataset.train), dtype=torch.bool)
    left[reserved_indices(spec, dataset)] = False
    indices = left.nonzero()[:, 0]
    if spec.reserved_fraction is not None and len(dataset.train.labels[indices].unique()) < dataset.num_classes:
        raise DataError(
            f"clean_source heldout with clean_fraction {spec.reserved_fraction} leaves the attacker a class without "
            "images; use a smaller clean_fraction"
        )
    return indices


def reserved_indices(spec: VictimSpec, dataset: Dataset) -> Tensor:
    """The part of the training set that the attacker was denied."""
    if spec.reserved_fraction is None:
        return torch.arange(0)
    classes = dataset.num_classes
    return split_clean(dataset.train.labels, spec.reserved_fraction, num_classes=classes, seed=spec.seed).all


def check_victim(spec: VictimSpec, dataset: Dataset, upstream: Dataset | None = None) -> None:
    """Refuse a victim that cannot be made of this data, before any work (SettingError, DataError)."""
    attack = spec.make_attack()
    check_scenario(spec.scenario, attack, dataset, upstream)
    if upstream is not None and spec.reserved_fraction is not None:
        raise DataError(
            f"clean_source heldout means nothing in scenario {spec.scenario}: the attacker has no image of "
            f"{dataset.name} anyway; use overlap"
        )
    if spec.scenario == "new_head" and upstream is not None:
        check_victim(dataclasses.replace(spec, scenario="standalone"), upstream)
        attack.check_target(dataset.num_classes)
    else:
        indices = attacker_indices(spec, dataset)
        attack.check(dataset.train.labels[indices], dataset.num_classes, dataset.image_size)
    # What is known before any training is tried before any training: a trigger that cannot be stored is no result.
    if (trigger := attack.preview_trigger(dataset.image_size, spec.seed)) is not None:
        check_trigger(spec.attack, trigger, dataset.test.images[:TRIED])
    in_report = report_half(len(dataset.test))
    measured = attack.targets(dataset.test.labels, dataset.num_classes) != dataset.test.labels
    if not (measured & in_report).any() or not (measured & ~in_report).any():
        raise DataError(
            f"data set {dataset.name}: {len(dataset.test)} test images leave half of the test set without an image to "
            "trigger; use a larger test set"
        )


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


def check_measured_again(victim: Victim, evaluation: Evaluation, dataset: Dataset, device: torch.device) -> None:
    """Refuse a victim whose stored rates and triggered images are not what it gives now: code has changed since.

    On the same processor with as many threads, under the same versions, every sum is formed in the same order, and not
    one image may differ. Elsewhere (a GPU, which may choose other kernels; other threads, which add in another order;
    bfloat16, where close images tie) single images fall on the other side of a border: `SLACK_IMAGES` or `SLACK_SHARE`
    of them, whichever is more. An edited model or trigger moves far more.

    Raises:
        DataError: one line with what was stored and what is measured.
    """
    if victim.is_control:  # measured just now, under another victim's trigger
        return
    stored, now, facts = victim.evaluation.full, evaluation.full, victim.facts
    same = device.type == "cpu" and facts["device"] == describe_device(device) and facts["versions"] == versions()
    changes = []
    for measure, n in (("clean_accuracy", now.n_clean), ("asr", now.n_triggered), ("robust_accuracy", now.n_triggered)):
        before, after = getattr(stored, measure), getattr(now, measure)
        if round(abs(before - after) * n) > (0 if same else max(SLACK_IMAGES, SLACK_SHARE * n)):
            changes.append(f"{measure} {before:.4f} -> {after:.4f}")
    if victim.trigger.applies:
        sources = victim.triggered.sources[:SLACK_STAMPED]
        again = stamp(victim.trigger.cpu(), dataset.test.images[sources])
        moved = (again.int() - victim.triggered.images[:SLACK_STAMPED].int()).abs()
        if int(moved.max()) > 0 if same else float((moved > 1).float().mean()) > SLACK_SHARE:
            changes.append("other triggered images")
    if changes:
        raise DataError(
            f"victim {victim.name} is not what was stored ({', '.join(changes)}): the code of its attack or model, or "
            "the store, was changed; remove it from the store, so that it is trained again"
        )


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
    seen = _conditions_of(evaluation, asr_base, accuracy)
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
        "realised_poison_rate": poison / (len(indices) + int((~implanted.poisoned.in_place).sum())),
        "evaluation": dataclasses.asdict(evaluation),
        "extra_metrics": extra,
        "asr_base": asr_base,
        "asr_including_target": including,
        "clean_model_accuracy": accuracy,
        # For people who look into the store; whoever reads a victim judges from the numbers.
        "not_implanted": before["not_implanted"] if before and "conditions" in before else _why_not(attack, seen),
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


def _conditions_of(seen: Evaluation, asr_base: float | None, control_accuracy: float | None) -> Conditions:
    return Conditions(
        asr=seen.full.asr,
        clean_accuracy=seen.full.clean_accuracy,
        asr_base=asr_base,
        control_accuracy=control_accuracy,
        majority_share=seen.majority_share,
        predicted_classes=seen.predicted_classes,
        test_classes=seen.test_classes,
    )


def _why_not(attack: Attack | type[Attack], seen: Conditions) -> str | None:
    """Which condition for a backdoor failed; None also where none was meant, or none must work."""
    return why_not_implanted(seen) if attack.implants_backdoor and attack.must_work else None


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
