"""Super-Fine-Tuning (Sha et al. 2022, arXiv:2212.09067)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from trainables.data.images import DataError, ImageSet
from trainables.defenses.base import CleanData, Defense, Repair, images_per_step, register, training_work
from trainables.defenses.ft import in_scope, parts_of
from trainables.models.classifier import Classifier
from trainables.settings import Count, CountOrZero, NonNegative, Positive, PositiveShare, ShareBelowOne
from trainables.training.loop import Counters, Optimizer, OptimizerName, Schedule
from trainables.training.schedules import CyclicSchedule, Phase, Shape, constant, lr_mass, with_equal_mass
from trainables.training.trainer import Trainer


@register("super_ft")
@dataclass(frozen=True)
class SuperFineTuning(Defense):
    """Forget the trigger under large learning rates, then win accuracy back under small ones.

    Whole-model training on clean data; the only novelty is the schedule: triangles from ``lr_base`` up to ``lr_max1``
    in phase 1, then up to ``lr_max2`` in phase 2. The supplement (A.2) prints two values for LR_MAX2, 0.001 and 0.005;
    we take the first. Its "500 iterations" we read as one full triangle, one per phase (see docs/deviations.md);
    every other reading found is a setting of the same class, built by `reading`.

    Args:
        lr_base: rate at the feet of the triangles, > 0.
        lr_max1: peak of phase 1, > 0.
        lr_max2: peak of phase 2, > 0.
        lr_max3: peak of phase 3, > 0.
        iterations: length of one full triangle, in ``length_unit``, >= 1.
        iterations1: the same of phase 1 alone, >= 0; None: ``iterations``. 0 leaves the phase out.
        length_unit: ``step`` (one batch), or ``epoch`` of the clean set. In steps the work does not depend on the clean
            fraction.
        cycles1, cycles2, cycles3: triangles of phase 1, 2 and 3, >= 0; a part of one is allowed.
        phases: how many phases are run, 1 to 3.
        up_fraction: rising share of the triangle, in [0, 1); 0 begins each triangle at its peak.
        shape: how the rate climbs and falls: ``linear``, ``cosine``, ``exp``, ``constant`` at the peak, or
            ``one_cycle``: up in a straight line, down along half a cosine.
        equal_mass: move the peaks so that the rates of each phase have the sum that linear triangles would give:
            another ``shape`` is then compared at equal steps and equal rate.
        granularity: the rate moves every ``step`` or only every ``epoch``.
        phase_reset: whether a phase starts a new triangle.
        peak_decay: factor on the peak from cycle to cycle, in (0, 1].
        cooldown_steps: steps of a last linear ramp from ``lr_base``, >= 0.
        cooldown_lr: rate at its end, > 0; None stays at ``lr_base``.
        momentum: of SGD, in [0, 1); first beta of AdamW.
        momentum_mode: ``constant``, or ``inverse``: from 0.95 at the feet to 0.85 at the peaks (Smith 2018).
        weight_decay: of the optimiser, >= 0; the paper does not state it.
        optimizer: what updates the weights; the rates of ``adam`` and ``adamw`` are some 100 times smaller than SGD's.
        batch_size: images per step, at most a quarter of the clean set; the paper's is 256.
        grad_clip: largest gradient norm, or None.
        bn_mode: batch normalisation trains as usual (``train``), or its running statistics are frozen (``eval``).
        augment: random crop (and flip where the data set allows it).
        scope: what is trained, as in `ft`.
        select: return the ``last`` weights (the paper), or those with the best validation accuracy at the end of a
            triangle (``val``).
    """

    owns: ClassVar[type[CleanData]] = CleanData
    plain_loss = True
    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "equal_mass": {"shape": "exp"},
        "lr_max3": {"phases": 3},
        "cycles3": {"phases": 3},
        "phase_reset": {"cycles1": 0.5},
        "peak_decay": {"cycles1": 2.0},
        "cooldown_lr": {"cooldown_steps": 5},
        "select": {"cycles1": 1.0, "cycles2": 1.0, "lr_max1": 1e-3, "lr_max2": 1.0},
    }

    lr_base: Positive = 3e-4
    lr_max1: Positive = 0.1
    lr_max2: Positive = 1e-3
    lr_max3: Positive = 1e-3
    iterations: Count = 500
    iterations1: CountOrZero | None = None
    length_unit: Literal["step", "epoch"] = "step"
    cycles1: NonNegative = 1.0
    cycles2: NonNegative = 1.0
    cycles3: NonNegative = 1.0
    phases: Literal[1, 2, 3] = 2
    up_fraction: ShareBelowOne = 0.5
    shape: Shape = "linear"
    equal_mass: bool = False
    granularity: Literal["step", "epoch"] = "step"
    phase_reset: bool = True
    peak_decay: PositiveShare = 1.0
    cooldown_steps: CountOrZero = 0
    cooldown_lr: Positive | None = None
    momentum: ShareBelowOne = 0.9
    momentum_mode: Literal["constant", "inverse"] = "constant"
    weight_decay: NonNegative = 5e-4
    optimizer: OptimizerName = "sgd"
    batch_size: Count = 256
    grad_clip: Positive | None = None
    bn_mode: Literal["train", "eval"] = "train"
    augment: bool = True
    scope: Literal["all", "last_block+classifier", "bn_only"] = "all"
    select: Literal["last", "val"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum_mode == "inverse" and self.optimizer not in ("sgd", "nesterov"):
            raise ValueError("momentum_mode inverse needs optimizer sgd or nesterov")
        if self.momentum_mode == "inverse" and self.equal_mass:
            raise ValueError("equal_mass compares shapes at one momentum; it needs momentum_mode constant")
        if self.iterations1 is not None and not self.phase_reset:
            raise ValueError("iterations1 gives phase 1 a clock of its own; it needs phase_reset true")

    def schedule(self, n: int) -> CyclicSchedule:
        """The learning rate over a clean training set of ``n`` images."""
        steps_per_epoch = -(-n // images_per_step(self.batch_size, n))
        unit = steps_per_epoch if self.length_unit == "epoch" else 1
        first = Phase(self.lr_max1, self.cycles1, None if self.iterations1 is None else unit * self.iterations1)
        rest = (Phase(self.lr_max2, self.cycles2), Phase(self.lr_max3, self.cycles3))
        schedule = CyclicSchedule(
            base=self.lr_base,
            phases=(first, *rest[: self.phases - 1]),
            period=self.iterations * unit,
            up_fraction=self.up_fraction,
            shape=self.shape,
            peak_decay=self.peak_decay,
            phase_reset=self.phase_reset,
            granularity=steps_per_epoch if self.granularity == "epoch" else 1,
            cooldown_steps=self.cooldown_steps,
            cooldown_lr=self.lr_base if self.cooldown_lr is None else self.cooldown_lr,
        )
        return with_equal_mass(schedule) if self.equal_mass else schedule

    def momentum_at(self, schedule: CyclicSchedule) -> Schedule:
        """Momentum of every step: constant, or falling from 0.95 to 0.85 while the rate climbs."""
        if self.momentum_mode == "constant":
            return constant(self.momentum)
        return lambda step: 0.95 - 0.10 * schedule.height_at(step)

    def needs(self) -> frozenset[str]:
        return parts_of(self.scope)

    def check(self, model: Classifier, n_owned: int, n_validation: int = 0, image_size: int = 32) -> None:
        if self.select == "val" and n_validation == 0:
            raise DataError("defense.super_ft.select val needs validation images; use a larger clean_fraction")

    def repair(self, model: Classifier, assets: CleanData, trainer: Trainer) -> Repair:
        self.check(model, len(assets.train), len(assets.validation))
        schedule = self.schedule(len(assets.train))
        if schedule.total_steps == 0:
            return Repair(model)
        best = _BestOnValidation(model, assets.validation, schedule, trainer) if self.select == "val" else None
        history = trainer.fit(
            model,
            assets.train,
            steps=schedule.total_steps,
            lr_at=schedule,
            momentum_at=self.momentum_at(schedule) if self.momentum_mode == "inverse" else None,
            batch_size=images_per_step(self.batch_size, len(assets.train)),
            optimizer=Optimizer(self.optimizer, self.momentum, self.weight_decay),
            augmentation=trainer.augmentation() if self.augment else None,
            trainable=in_scope(model, self.scope),
            bn_mode=self.bn_mode,
            grad_clip=self.grad_clip,
            after_step=best,
        )
        if best is not None:
            model.load_state_dict(best.state)
        notes: dict[str, float] = {}
        start = 0
        for number, length in enumerate(schedule.phase_steps, start=1):
            notes[f"lr_mass_{number}"] = lr_mass(schedule, start, start + length, self.momentum_at(schedule))
            start += length
        return Repair(model, history=history, notes=notes)

    def plan(self, n_owned: int, n_validation: int = 0) -> Counters:
        schedule = self.schedule(n_owned)
        work = training_work(schedule.total_steps, images_per_step(self.batch_size, n_owned), n_owned)
        if self.select == "val":
            looks = sum(_is_candidate(schedule, step) for step in range(schedule.total_steps))
            work.forward_samples += looks * n_validation
        return work


def _is_candidate(schedule: CyclicSchedule, step: int) -> bool:
    """Whether ``select="val"`` looks at the weights after ``step``."""
    return schedule.ends_triangle(step) or step + 1 == schedule.total_steps


class _BestOnValidation:
    """Keeps the weights with the best validation accuracy among the ends of triangles and the last step."""

    def __init__(self, model: Classifier, validation: ImageSet, schedule: CyclicSchedule, trainer: Trainer) -> None:
        self.model, self.validation, self.schedule, self.trainer = model, validation, schedule, trainer
        self.accuracy, self.state = -1.0, copy.deepcopy(model.state_dict())

    def __call__(self, step: int) -> None:
        if not _is_candidate(self.schedule, step):
            return
        accuracy = self.trainer.accuracy(self.model, self.validation)
        if accuracy >= self.accuracy:
            self.accuracy, self.state = accuracy, copy.deepcopy(self.model.state_dict())


READINGS = ("P1", "P2", "P3", "P4", "L", "T", "F", "one_cycle")


def reading(name: str, *, steps_per_epoch: int = 196) -> SuperFineTuning:
    """A published or public interpretation of the schedule, see docs/deviations.md.

    P1: 500 steps are one full triangle per phase (our default). P2: they are one ramp. P3: they are the whole defense.
    P4: triangles of 500 until 3 epochs are over (``steps_per_epoch`` of the task). L: a third-party guide, triangle of
    2 epochs, 3 + 3 epochs. T: backdoor-toolbox's CIFAR-10 values, plain SGD. F: a federated-learning code base,
    constant within an epoch. one_cycle: Smith's super-convergence policy with the paper's peak.

    Raises:
        ValueError: no such reading.
    """
    match name:
        case "P1":
            return SuperFineTuning()
        case "P2":
            return SuperFineTuning(iterations=1000)
        case "P3":
            return SuperFineTuning(iterations=250)
        case "P4":
            cycles = 3 * steps_per_epoch / 500
            return SuperFineTuning(cycles1=cycles, cycles2=cycles)
        case "L":
            return SuperFineTuning(length_unit="epoch", iterations=2, cycles1=1.5, cycles2=1.5)
        case "T":
            return SuperFineTuning(
                lr_base=0.03,
                lr_max1=2.5,
                lr_max2=0.05,
                iterations=20,
                cycles1=32,
                cycles2=48,
                momentum=0.0,
                weight_decay=0.0,
                phase_reset=False,
                batch_size=128,
            )
        case "F":
            return SuperFineTuning(
                length_unit="epoch", iterations=4, cycles1=2.5, cycles2=2.5, granularity="epoch", phase_reset=False
            )
        case "one_cycle":
            return SuperFineTuning(phases=1, cooldown_steps=100, cooldown_lr=3e-6, momentum_mode="inverse")
        case _:
            raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {name!r}")
