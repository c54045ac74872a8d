"""What defenses share: exactly what a defender owns, what a repair returns, and the registry.

Leak rule: a defense receives a model, its assets and a trainer. Test data, trigger, target label, poison mask and the
true poison rate are not reachable from any of them, nor are the streams that drew them. (A file system is open to all
code: a defense that searched the folders beside its memo would find the store of victims. None may.)

Lengths: what trains on the defender's clean set counts optimiser *steps*. A published length is that many steps at the
published set size and batch (`published_steps`) and stays so on a smaller set, where as many epochs would be a few
steps. Only what trains a new model on the whole training set (`abl`, `ac`, `spectral`) counts *epochs*, as the victims'
own recipe does: that set is as large as the published one, or the task is another, for the victim as well.
Batches: the published size, at most a quarter of the images (`images_per_step`), for every method alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor

from trainables.data.images import ImageSet
from trainables.models.classifier import Classifier
from trainables.registry import Registry, SettingError, check_method
from trainables.settings import check_settings
from trainables.training.loop import Counters, History
from trainables.training.loop import training_work as training_work  # attacks plan with it too
from trainables.training.trainer import Trainer


@dataclass(frozen=True)
class NoData:
    """A data-free defender owns the model alone."""


@dataclass(frozen=True)
class CleanData:
    """A post-training defender owns a clean set; ``validation`` was set apart from it and is disjoint."""

    train: ImageSet
    validation: ImageSet


@dataclass(frozen=True)
class PoisonedData:
    """A pre-training defender owns the training set as released: poisoned samples in place, none marked.

    Copies that an attack adds (`PoisonedSamples.appended`) are the last samples: a defense must not go by positions.
    """

    train: ImageSet


Assets = NoData | CleanData | PoisonedData


@dataclass
class Repair:
    """What a defense hands back.

    Args:
        model: the repaired model (the very object that is evaluated), in eval mode.
        status: ``abstained`` when the defense found nothing to repair and returns its input.
        history: learning rate and loss per step, where it trained.
        scores: suspicion per training sample (N,), for detectors.
        removed: indices of the training samples left out, for detectors.
        flagged_classes: labels a detector calls attacked.
        notes: further numbers of the method worth keeping, JSON-able.
    """

    model: Classifier
    status: Literal["ok", "abstained"] = "ok"
    history: History = field(default_factory=History)
    scores: Tensor | None = None
    removed: Tensor | None = None
    flagged_classes: tuple[int, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defense(ABC):
    """Settings of a defense; `repair` carries it out."""

    name: ClassVar[str]
    owns: ClassVar[type[NoData] | type[CleanData] | type[PoisonedData]]
    # False where the method may stop early: `plan` then tells the most it can cost.
    plan_is_exact: ClassVar[bool] = True
    # True where `detect` says what is left out before anything is trained, so that it can be tuned on that alone.
    detects: ClassVar[bool] = False
    # True where every step's loss is that of the owned images and their labels alone: where that never rises, the model
    # stayed in the valley in which it came. The loss of a method that does more says nothing of the kind.
    plain_loss: ClassVar[bool] = False
    # True where what it does rests on the outputs of the model that it is given: of a random head they mean nothing.
    judges_outputs: ClassVar[bool] = False
    # Settings that are gone -> what takes their place, for the message to a spec that still has them.
    replaced: ClassVar[Mapping[str, str]] = MappingProxyType({})
    # Fields that do nothing at the defaults -> settings beside which they matter (a third peak needs a third phase).
    # The inherited suite holds every other field to changing the result by itself.
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    def __post_init__(self) -> None:
        """Check the fields; a subclass with rules across fields calls this before them."""
        check_settings(self)

    def needs(self) -> frozenset[str]:
        """Parts that a model must have for these settings, by their names in `models.parts.PARTS`; mostly none.

        Every registered model has them all; of a model that somebody brings this is asked before any work.
        """
        return frozenset()

    def check(  # noqa: B027 - most need nothing
        self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32
    ) -> None:
        """Refuse, before any work, a model or data that this defense cannot work with.

        Args:
            model: of the victim's architecture; its weights mean nothing.
            n_owned, n_validation: as in `plan`.
            image_size: side of the images, in pixels.

        Raises:
            DataError, ModelError: one line that names what is missing.
        """

    @abstractmethod
    def repair(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
        """Repair ``model`` (it may be changed in place; the caller passes a copy).

        Args:
            assets: an instance of `owns`, on the trainer's device.
            trainer: device, random streams, augmentation, counters.

        Raises:
            DivergedError: training left the finite numbers.
        """

    def detect(self, model: Classifier, assets: Any, trainer: Trainer) -> Repair:
        """What `repair` would leave out of its training, before it trains: ``model`` itself, scores and ``removed``.

        For a defense that `detects`; arguments as for `repair`, and ``model`` is not changed.
        """
        raise TypeError(f"defense {self.name} does not detect: it has nothing to say before it repairs")

    @abstractmethod
    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        """The work `repair` will do, before it does it (cost estimates); see `plan_is_exact`.

        Args:
            n_owned: training samples among the assets.
            n_validation: validation samples among them.
        """

    def plan_for(self, num_classes: int, n_owned: int, n_validation: int = 0) -> Counters:
        """`plan` on a task of so many classes; for most methods they do not matter."""
        return self.plan(n_owned, n_validation)


def _check(name: str, cls: type[Defense]) -> None:
    """Refuse a class that is no defense (SettingError)."""
    check_method("defense", name, cls, Defense)
    if getattr(cls, "owns", None) not in (NoData, CleanData, PoisonedData):
        raise SettingError(
            f"defense {name!r}: its class must say what such a defender owns: "
            "owns: ClassVar = NoData, CleanData or PoisonedData"
        )


DEFENSES: Registry[type[Defense]] = Registry("defense", "trainables.defenses", _check)
register = DEFENSES.register


def published_steps(*, epochs: float, images: int, batch_size: int) -> int:
    """Optimiser steps of a published length: epochs over so many images, the last batch of each may be smaller."""
    return round(epochs * -(-images // batch_size))


def images_per_step(batch_size: int, n: int) -> int:
    """The batch of every method: ``batch_size``, at most a quarter of the ``n`` training images that it was given.

    Larger batches would be the whole set: every step the same images, and batch statistics without noise. At least 2
    where there are two, because batch statistics of one image are none.
    """
    return max(min(batch_size, n // 4), min(batch_size, n, 2), 1)
