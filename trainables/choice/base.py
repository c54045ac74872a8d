"""How a defender chooses a repair's settings without an attack success rate: what every rule is given and hands back.

Leak rule: a rule gets a `Suspect`, which holds the suspicious model, the defender's own clean images and a trainer, and
nothing else. It never meets test data, the trigger or the target class. What an experimenter knows who measures ASR is
`oracle`; what he knows from other attacks is `transfer`; all rules here are `blind` (docs/choosing.md).
"""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from trainables.data.images import DataError
from trainables.defenses.base import DEFENSES, CleanData, Repair
from trainables.defenses.carry_out import carry_out
from trainables.models.classifier import Classifier
from trainables.registry import Registry, check_method
from trainables.settings import check_settings
from trainables.training.loop import Counters, DivergedError
from trainables.training.movement import Movement, Snapshot, movement
from trainables.training.trainer import Trainer


@dataclass(frozen=True)
class Candidate:
    """A repair that may be chosen: a defense that owns clean data, with settings over its defaults."""

    defense: str
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """For tables: ``super_ft iterations=120 lr_max1=0.1``."""
        return " ".join([self.defense, *(f"{key}={_plain(value)}" for key, value in self.settings.items())])

    def __hash__(self) -> int:  # the settings are a mapping, which has none
        return hash(self.defense)


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def super_ft(iterations: int, lr_max1: float) -> Candidate:
    """Super-fine-tuning with its published ``lr_base`` and ``lr_max2``."""
    return Candidate("super_ft", {"iterations": iterations, "lr_max1": lr_max1})


# Where a defender starts who names no candidates: lengths and peaks around the published point, which is among them.
CANDIDATES = (
    *(super_ft(25, peak) for peak in (0.1, 0.3)),
    *(super_ft(length, peak) for length in (60, 120, 250) for peak in (0.03, 0.1, 0.3)),
    *(super_ft(500, peak) for peak in (0.03, 0.1)),
)
# Repairs to look at beside whatever is chosen: one setting that did well in hindsight, and plain fine-tuning from the
# published peak over as many steps as the published schedule.
SHORT_RAMP = super_ft(120, 0.1)
FT_PEAK = Candidate("ft", {"lr": 0.1, "steps": 1000, "schedule": "cosine"})
PUBLISHED = super_ft(500, 0.1)


def first_candidates(count: int) -> tuple[Candidate, ...]:
    """As many of CANDIDATES, at most all, ordered so that even a few are short and long, weak and strong."""
    spread = (SHORT_RAMP, PUBLISHED, super_ft(60, 0.03), super_ft(120, 0.03), super_ft(60, 0.1), super_ft(250, 0.1))
    return (*spread, *(one for one in CANDIDATES if one not in spread))[:count]


@dataclass(frozen=True)
class Attempt:
    """A candidate tried on a copy of a model, with all that its defender can see.

    Args:
        repair: what the defense handed back, its model on the CPU; None where the training diverged, or nobody needs it
            any more.
        right: validation images classified right, of ``images``.
        movement: None where it diverged.
        work: of the repair and of looking at it.
        seconds: that it took.
    """

    candidate: Candidate
    repair: Repair | None
    right: int
    images: int
    movement: Movement | None
    work: Counters
    diverged: bool = False
    seconds: float = 0.0

    @property
    def model(self) -> Classifier | None:
        """The repaired copy, where it is kept."""
        return None if self.repair is None else self.repair.model

    @property
    def accuracy(self) -> float:
        """Validation accuracy, in [0, 1]; 0 where it diverged."""
        return self.right / self.images

    @property
    def moved(self) -> bool:
        """Whether the repair moved the model at all."""
        return self.movement is not None and self.movement.moved is not False

    @property
    def loss_rise(self) -> float:
        """How far the training loss rose; 0 where nothing was trained or it diverged."""
        return (self.movement.loss_rise or 0.0) if self.movement is not None else 0.0


@dataclass
class Suspect:
    """A suspicious model with what its defender owns; it remembers the candidates that were tried on it.

    Every attempt draws the same random numbers as the repair that follows the choice, so the model that a rule looked
    at is the model that is handed over.

    Args:
        model: in eval mode, on the trainer's device; not changed.
        images: training and validation part, on the trainer's device.
        trainer: device, random streams, augmentation. Its counters are left alone: the work is in attempts and choices.
        kept: what else rules have made of this model, by a key of their own. Whoever uses it is charged for making it.
    """

    model: Classifier
    images: CleanData
    trainer: Trainer
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)
    _tried: dict[Candidate, Attempt] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.images.validation) == 0:
            raise DataError("choosing settings needs validation images; use a larger clean_fraction")

    def bench(self) -> Trainer:
        """The trainer with counters of its own."""
        return dataclasses.replace(self.trainer, counters=Counters(), made=[], reused={}, batch=None)

    def attempt(self, candidate: Candidate) -> Attempt:
        """``candidate`` tried on a copy of the model; at once where it was tried before."""
        if candidate not in self._tried:
            self._tried[candidate] = self._attempt(candidate)
        return self._tried[candidate]

    def known(self, candidate: Candidate) -> Attempt | None:
        """What ``candidate`` came to, where it was tried before."""
        return self._tried.get(candidate)

    def enter(self, attempt: Attempt) -> None:
        """Take over an attempt that was made elsewhere, on a copy of this suspect."""
        self._tried[attempt.candidate] = attempt

    def without_model(self, candidate: Candidate) -> None:
        """Forget the repaired copy itself, whose numbers are all that is needed from here on."""
        self._tried[candidate] = dataclasses.replace(self.attempt(candidate), repair=None)

    def to(self, device: torch.device) -> Suspect:
        """A copy with nothing tried yet, to try candidates on another device or in another process."""
        images = CleanData(self.images.train.to(device), self.images.validation.to(device))
        return Suspect(copy.deepcopy(self.model).to(device), images, dataclasses.replace(self.trainer, device=device))

    def _attempt(self, candidate: Candidate) -> Attempt:
        bench, validation, started = self.bench(), self.images.validation, time.perf_counter()
        defense = DEFENSES.create(candidate.defense, candidate.settings)
        before = Snapshot.of(self.model)
        try:
            repair = carry_out(defense, self.model, self.images, bench)
            accuracy = bench.accuracy(repair.model, validation)
        except DivergedError:
            passed = time.perf_counter() - started
            return Attempt(candidate, None, 0, len(validation), None, bench.counters, diverged=True, seconds=passed)
        seen = movement(before, repair.model, repair.history.loss, plain_loss=defense.plain_loss)
        repair.model = repair.model.cpu()
        right, passed = round(accuracy * len(validation)), time.perf_counter() - started
        return Attempt(candidate, repair, right, len(validation), seen, bench.counters, seconds=passed)

    def before(self) -> tuple[float, Counters]:
        """Validation accuracy of the model as it came, in [0, 1], and the work of looking at it."""
        bench = self.bench()
        return bench.accuracy(self.model, self.images.validation), bench.counters


@dataclass(frozen=True)
class Choice:
    """What a rule says.

    Args:
        rule: its name.
        candidate: the chosen repair; None: the rule found none that it would answer for.
        reasons: sentences for people, the most important one first.
        work: all that choosing took, the repair of the untouched model included where ``attempt`` holds it.
        attempt: that repair, where the rule made it anyway.
        table: what was seen of each candidate, JSON-able.
        planted: of each trigger that the rule planted, what became of it under the chosen candidate, JSON-able.
    """

    rule: str
    candidate: Candidate | None
    reasons: tuple[str, ...]
    work: Counters = field(default_factory=Counters)
    attempt: Attempt | None = None
    table: tuple[Mapping[str, Any], ...] = ()
    planted: tuple[Mapping[str, Any], ...] = ()


class NothingSafeError(Exception):
    """A rule found no candidate that it would answer for."""

    def __init__(self, choice: Choice) -> None:
        super().__init__(f"{choice.rule} chooses nothing: {choice.reasons[0]}")
        self.choice = choice

    def __reduce__(self) -> tuple[type[NothingSafeError], tuple[Choice]]:
        return NothingSafeError, (self.choice,)


@dataclass(frozen=True)
class Rule(ABC):
    """Settings of a rule; `choose` carries it out."""

    name: ClassVar[str]
    knows: ClassVar[str] = "blind"
    # Defenses that it has settings for; empty: whatever it was told of.
    defenses: ClassVar[tuple[str, ...]] = (PUBLISHED.defense,)
    # What it tries before it chooses: nothing, each candidate on the model, or each on planted copies first.
    tries: ClassVar[Literal["nothing", "model", "copies"]] = "nothing"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_settings(self)

    @abstractmethod
    def choose(self, suspect: Suspect, candidates: tuple[Candidate, ...] = CANDIDATES) -> Choice:
        """Choose one of ``candidates`` for ``suspect``.

        Raises:
            SettingError, DataError: a candidate that its defense refuses, in one line.
        """


def _check(name: str, cls: type[Rule]) -> None:
    check_method("rule", name, cls, Rule)


RULES: Registry[type[Rule]] = Registry("rule", "trainables.choice", _check)
register = RULES.register
