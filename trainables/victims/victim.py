"""A backdoored model, with everything that attacker and evaluator know of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import ATTACKS, Attack, PoisonedSamples
from trainables.attacks.triggers import Trigger
from trainables.data.images import DataError, Dataset, ImageSet, TriggeredSet
from trainables.data.split import CleanSplit, split_clean
from trainables.evaluation.conditions import Conditions, why_not_implanted
from trainables.evaluation.metrics import Evaluation
from trainables.models.classifier import Classifier
from trainables.seeding import derive_seed
from trainables.training.arithmetic import arithmetic_text
from trainables.victims.spec import VictimSpec, reserved_indices

CLEAN_SOURCES = ("overlap", "unpoisoned", "heldout")


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
        stands_for: of a control, what the attack did to the training set of the victim in whose place it stands.
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
    stands_for: PoisonedSamples | None = None

    @property
    def conditions(self) -> Conditions:
        """The numbers that decide whether there is a backdoor; after `as_control` they are the clean model's.

        Of a model that was taken over for another task they are those on the attacker's own task: whether the backdoor
        survives the new head is a result.
        """
        if self.upstream is not None:
            return self.upstream
        return conditions_of(self.evaluation, self.asr_base, self.clean_model_accuracy)

    @property
    def why_not_implanted(self) -> str | None:
        """Which condition for a backdoor failed, in words; None if there is one to remove, or none was meant."""
        return None if self.is_control else why_not(ATTACKS.get(self.spec.attack), self.conditions)

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
            stands_for=self.poisoned,
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
            # Of a control what its victim's attack left alone, so that the defenders of both hold the same images.
            poisoned = self.poisoned if self.stands_for is None else self.stands_for
            untouched = torch.ones(len(dataset.train), dtype=torch.bool)
            untouched[self.attacker_indices[poisoned.indices[poisoned.in_place]]] = False
            pool = untouched.nonzero()[:, 0]
        seed = self.spec.seed
        if defense_seed:
            seed = derive_seed(seed, "defense-seed", defense_seed)
            if source == "heldout":
                pool = reserved_indices(self.spec, dataset)
        return split_clean(dataset.train.labels, fraction, num_classes=dataset.num_classes, seed=seed, pool=pool)


def conditions_of(seen: Evaluation, asr_base: float | None, control_accuracy: float | None) -> Conditions:
    return Conditions(
        asr=seen.full.asr,
        clean_accuracy=seen.full.clean_accuracy,
        asr_base=asr_base,
        control_accuracy=control_accuracy,
        majority_share=seen.majority_share,
        predicted_classes=seen.predicted_classes,
        test_classes=seen.test_classes,
    )


def why_not(attack: Attack | type[Attack], seen: Conditions) -> str | None:
    """Which condition for a backdoor failed; None also where none was meant, or none must work."""
    return why_not_implanted(seen) if attack.implants_backdoor and attack.must_work else None
