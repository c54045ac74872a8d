"""What attacks share: label maps, the choice of poisoned samples, honest training on them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.attacks.triggers import Trigger, stamp
from trainables.data.images import ImageSet, TriggeredSet
from trainables.models.classifier import Classifier
from trainables.registry import Registry, SettingError, check_method
from trainables.seeding import generator_for
from trainables.settings import Count, CountOrZero, PositiveShare, check_settings
from trainables.training.loop import Counters
from trainables.training.recipes import TrainingRecipe
from trainables.training.trainer import Trainer

# Test images that a trigger is tried on before its victim is trained.
TRIED = 8


class Kind(IntEnum):
    """What a training sample is, as only the attacker knows."""

    CLEAN = 0
    POISON = 1
    CROSS = 2  # carries a trigger under its true label (input-aware's cross, WaNet's noise, cover samples)


@dataclass(frozen=True)
class PoisonedSamples:
    """The training samples that differ from the clean set, and how; everything else is as it was.

    Args:
        indices: positions in the training set, int64, (M,), each at most once.
        images: uint8, (M, 3, H, W), as stored for training.
        labels: int64, (M,), as released.
        kinds: uint8, (M,), values of `Kind`.
        appended: bool, (M,): the sample is a copy put behind the training set, and the one at its index stays as it
            was; None: all samples are in place of theirs.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    kinds: Tensor
    appended: Tensor | None = None

    @classmethod
    def none(cls, like: ImageSet) -> PoisonedSamples:
        """An empty selection (a clean training)."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls(nothing, like.images[:0].cpu(), nothing, nothing.to(torch.uint8))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def in_place(self) -> Tensor:
        """Mask of the samples that replace the one at their index: bool, (M,)."""
        return torch.ones(len(self), dtype=torch.bool) if self.appended is None else ~self.appended

    def apply(self, train: ImageSet) -> ImageSet:
        """The poisoned training set as the attacker releases it.

        A copy of ``train`` with these samples in place, and then the appended ones in their order.
        """
        images, here, labels = train.images.clone(), self.in_place, self.labels_of(train.labels)
        new_images = self.images.to(images.device)
        at, here = self.indices[here].to(images.device), here.to(images.device)
        images[at] = new_images[here]
        return ImageSet(images if bool(here.all()) else torch.cat([images, new_images[~here]]), labels)

    def labels_of(self, labels: Tensor) -> Tensor:
        """Labels of what `apply` makes of a training set with ``labels``: int64, (n + number appended,)."""
        changed, here, new = labels.clone(), self.in_place.to(labels.device), self.labels.to(labels.device)
        changed[self.indices.to(labels.device)[here]] = new[here]
        return torch.cat([changed, new[~here]])

    def kinds_of(self, n: int) -> Tensor:
        """Kind of every sample that `apply` makes of a training set of ``n``: uint8, (n + number appended,)."""
        kinds, here = torch.zeros(n, dtype=torch.uint8), self.in_place
        kinds[self.indices[here]] = self.kinds[here]
        return torch.cat([kinds, self.kinds[~here]])


@dataclass(frozen=True)
class Implanted:
    """What an attack leaves behind: the backdoored model, its trigger and what it did to the training set.

    ``earlier`` are models that it went through, by a word for the stage: their rates are reported beside the victim's.
    """

    model: Classifier
    trigger: Trigger
    poisoned: PoisonedSamples
    earlier: Mapping[str, Classifier] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """Settings of an attack; `implant` carries it out.

    Args:
        target_label: the class t that triggered images should go to (all_to_one).
        label_mode: ``all_to_one``: every label becomes t; ``all_to_all``: y becomes (y + label_shift) mod K.
        label_shift: shift of all_to_all, not 0 modulo K.
    """

    name: ClassVar[str]
    implants_backdoor: ClassVar[bool] = True
    # Whether the model is released as an encoder, trained without labels, under a head for the user's task.
    releases_encoder: ClassVar[bool] = False
    # Whether a victim that hardly obeys is refused as a failed implant; False where the literature reports such.
    must_work: ClassVar[bool] = True
    # Whether its trigger can be put on any image, see `Trigger.applies`.
    trigger_applies: ClassVar[bool] = True
    # Whether images are stamped in the training loop, after the augmentation, and not once beforehand.
    stamps_in_loop: ClassVar[bool] = False
    # Whether `implant` trains the model: False where it hands out ready-made weights.
    trains: ClassVar[bool] = True
    # Settings that a release added, each with the value at which all is as it was without it: at that value it is no
    # part of a victim's key, so that stored victims are found again.
    came_later: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Fields that do nothing at the defaults -> settings beside which they matter; those of the bases hold as well. The
    # suite holds every other field to changing the attack by itself.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"label_shift": {"label_mode": "all_to_all"}}
    )

    target_label: CountOrZero = 0
    label_mode: Literal["all_to_one", "all_to_all"] = "all_to_one"
    label_shift: int = 1

    def __post_init__(self) -> None:
        """Check the fields; a subclass with rules across fields calls this before them."""
        check_settings(self)

    @abstractmethod
    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        """Train (or edit) a model so that it carries the backdoor.

        Args:
            train: the attacker's clean training set, on the trainer's device; not modified.
            trainer: device, random streams, counters and fresh models.
            recipe: how a victim is trained.
        """

    @property
    def plan_is_exact(self) -> bool:
        """False where chance or the model decides, or it may stop early: `planned_work` then tells the most.

        Where the most is out of all proportion, the most that was seen.
        """
        return True

    def planned_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> Counters:
        """The work `implant` will do, before it does it; by default an honest training by the recipe.

        `shared_work` is part of it: it is that of a first victim, which finds nothing ready made.

        Args:
            labels: of the attacker's clean training set, int64 (n,).
            recipe: how a victim is trained.
            n_upstream: unlabelled images that an encoder is trained on before; None: the task's own.
        """
        return recipe.work(len(labels)) if self.trains else Counters()

    def shared_work(self, labels: Tensor, recipe: TrainingRecipe, n_upstream: int | None = None) -> dict[str, Counters]:
        """The part of `planned_work` that other victims of the same data, model and seed find ready made.

        By its name in the memo (`memo_name` of no task); by default none. Arguments as for `planned_work`.
        """
        return {}

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        """Refuse settings that do not fit the task, before any work.

        Raises:
            SettingError: one line naming the setting, its value and what is allowed.
        """
        self.check_target(num_classes)

    def check_model(self, model: Classifier) -> None:  # noqa: B027 - most attacks fit any model
        """Refuse a model that this attack cannot be built into, before any work; by default none is refused.

        Raises:
            SettingError: one line naming the setting and what is allowed.
        """

    def check_target(self, num_classes: int) -> None:
        """Refuse labels that a task of so many classes does not have (SettingError)."""
        if self.target_label >= num_classes:
            raise SettingError(
                f"attack.{self.name}.target_label must be below the number of classes ({num_classes}), "
                f"got {self.target_label}"
            )
        if self.label_mode == "all_to_all" and self.label_shift % num_classes == 0:
            raise SettingError(
                f"attack.{self.name}.label_shift must not be a multiple of the number of classes ({num_classes}), "
                f"got {self.label_shift}"
            )

    def at(self, image_size: int) -> Attack:
        """Itself with the settings filled in that follow the size of the images; `identity` is taken of that."""
        return self

    def identity(self) -> dict[str, Any]:
        """All that decides the result, JSON-able: part of the victim's content key."""
        return {"attack": self.name, **dataclasses.asdict(self)}

    @property
    def releases_training_set(self) -> bool:
        """Whether a poisoned training set comes with the model: not where the backdoor was planted without one."""
        return True

    def control(self) -> tuple[str, dict[str, Any]]:
        """Name and settings of the attack-free twin whose models ASR-base is taken on; honest training by default."""
        return "clean", {}

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """The labels the attacker wants for images of ``labels``; same shape."""
        if self.label_mode == "all_to_all":
            return (labels + self.label_shift) % num_classes
        return torch.full_like(labels, self.target_label)

    def preview_trigger(self, image_size: int, seed: int) -> Trigger | None:
        """The trigger where it is known before any training; None where it comes out of the attack."""
        return None

    def extra_metrics(self, model: Classifier, trigger: Trigger, test: ImageSet, trainer: Trainer) -> dict[str, float]:
        """What else the literature reports of a victim of this attack (cross accuracy); default nothing.

        Args:
            model: the victim, on the trainer's device, as is ``test``, the clean test set.
        """
        return {}

    def triggered_test(self, trigger: Trigger, test: ImageSet, num_classes: int) -> TriggeredSet:
        """The stored triggered test set: every test image whose label the attack would change, stamped once."""
        targets = self.targets(test.labels, num_classes)
        sources = (targets != test.labels).nonzero()[:, 0]
        return TriggeredSet(stamp(trigger, test.images[sources]), test.labels[sources], targets[sources], sources)


def _check(name: str, cls: type[Attack]) -> None:
    """Refuse a class that is no attack (SettingError)."""
    check_method("attack", name, cls, Attack)


ATTACKS: Registry[type[Attack]] = Registry("attack", "trainables.attacks", _check)
register = ATTACKS.register


@dataclass(frozen=True)
class DataPoisoning(Attack):
    """Attacks that only change training samples; the training itself is honest.

    Args:
        poison_rate: share of the *whole* training set that is poisoned, in (0, 1].
        poison_count: number of poisoned samples; wins over the rate.
        clean_label: poison only images that already have the target label, and leave labels as they are.
        exclude_target: draw no image that already has the label it would get (BackdoorBench draws them).
    """

    poison_rate: PositiveShare = 0.1
    poison_count: Count | None = None
    clean_label: bool = False
    exclude_target: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clean_label and self.label_mode == "all_to_all":
            raise ValueError("clean_label needs label_mode all_to_one: it changes no label")
        if self.clean_label and self.exclude_target:
            raise ValueError("clean_label and exclude_target contradict each other: clean-label poison is target-class")

    @abstractmethod
    def make_trigger(self, image_size: int, seed: int) -> Trigger:
        """The trigger applied to test images."""

    def make_training_trigger(self, image_size: int, seed: int) -> Trigger:
        """The trigger stamped on training images; the test trigger unless an attack says otherwise."""
        return self.make_trigger(image_size, seed)

    def preview_trigger(self, image_size: int, seed: int) -> Trigger | None:
        return self.make_trigger(image_size, seed)

    def planned(self, labels: Tensor) -> int:
        """Number of poisoned samples of a training set with ``labels``."""
        return self.count(len(labels))

    def count(self, n: int) -> int:
        """Number of poisoned samples of ``n`` (banker's rounding, as in the field's reference code)."""
        return self.poison_count if self.poison_count is not None else round(self.poison_rate * n)

    def check(self, labels: Tensor, num_classes: int, image_size: int) -> None:
        super().check(labels, num_classes, image_size)
        count, allowed = self.planned(labels), int(self._allowed(labels, num_classes).sum())
        given = (
            f"poison_count {self.poison_count}" if self.poison_count is not None else f"poison_rate {self.poison_rate}"
        )
        if count < 1:
            raise SettingError(f"attack.{self.name}: {given} selects no image of {len(labels)}; raise it")
        if self.clean_label and not allowed:
            raise SettingError(
                f"attack.{self.name}: no image is of target class {self.target_label}, and a clean-label attack "
                "poisons images of that class alone; set target_label to a class with images"
            )
        if count > allowed:
            whose = f"images of target class {self.target_label}" if self.clean_label else "images that may be poisoned"
            raise SettingError(
                f"attack.{self.name}: {given} asks for {count} images but there are {allowed} {whose}; "
                f"use at most {allowed / len(labels):.4g} of the training set"
            )

    def choose(self, labels: Tensor, num_classes: int, seed: int) -> Tensor:
        """Sorted indices of the poisoned samples, int64; drawn uniformly without replacement.

        The stream is private to this purpose, so one seed poisons the same images whatever the attack.
        """
        self.check(labels, num_classes, image_size=0)
        allowed = self._allowed(labels.cpu(), num_classes).nonzero()[:, 0]
        order = torch.randperm(len(allowed), generator=generator_for(seed, "poison-index"))
        return allowed[order[: self.planned(labels)]].sort().values

    def poison(self, train: ImageSet, num_classes: int, seed: int, trigger: Trigger | None = None) -> PoisonedSamples:
        """The poisoned samples of ``train``, stamped with ``trigger`` (default: the training trigger), relabelled."""
        indices = self.choose(train.labels, num_classes, seed)
        chosen = train.subset(indices)
        labels = chosen.labels if self.clean_label else self.targets(chosen.labels, num_classes)
        images = stamp(trigger or self.make_training_trigger(train.image_size, seed), chosen.images)
        kinds = torch.full((len(indices),), Kind.POISON, dtype=torch.uint8)
        return PoisonedSamples(indices, images.cpu(), labels.cpu(), kinds)

    def implant(self, train: ImageSet, trainer: Trainer, recipe: TrainingRecipe) -> Implanted:
        poisoned = self.poison(train, trainer.num_classes, trainer.seed)
        model = trainer.train_from_scratch(poisoned.apply(train), recipe)
        return Implanted(model, self.make_trigger(train.image_size, trainer.seed), poisoned)

    def _allowed(self, labels: Tensor, num_classes: int) -> Tensor:
        if self.clean_label:
            return labels == self.target_label
        if self.exclude_target:
            return self.targets(labels, num_classes) != labels
        return torch.ones_like(labels, dtype=torch.bool)
