"""Learning-rate schedules as plain functions of the step (0, 1, ...), assigned *before* that step is made."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

from trainables.training.loop import Schedule

Shape = Literal["linear", "cosine", "exp", "constant", "one_cycle"]


def constant(lr: float) -> Schedule:
    """The same rate at every step."""
    return lambda _step: lr


def cosine(lr: float, steps: int, *, t_max: int | None = None) -> Schedule:
    """Half a cosine from ``lr`` at step 0 to 0 after ``t_max`` steps (default: all of them).

    BackdoorBench fixes its period at 100 epochs whatever the length; ``t_max`` mimics that, the default does not.
    """
    period = max(1, t_max or steps)
    return lambda step: lr * (1.0 + math.cos(math.pi * step / period)) / 2.0


def one_cycle(lr: float, steps: int, *, warm_fraction: float = 0.3, start: float = 0.04, end: float = 1e-4) -> Schedule:
    """Linear warm-up to ``lr`` over ``warm_fraction`` of the steps, then a cosine down (Smith 2018, arXiv:1803.09820).

    ``start`` and ``end`` are shares of ``lr``.
    """
    warm = max(1, round(warm_fraction * steps))

    def lr_at(step: int) -> float:
        if step < warm:
            return lr * (start + (1.0 - start) * step / warm)
        progress = (step - warm) / max(1, steps - warm)
        return lr * (end + (1.0 - end) * (1.0 + math.cos(math.pi * progress)) / 2.0)

    return lr_at


@dataclass(frozen=True)
class Phase:
    """One phase: ``cycles`` triangles up to ``peak``, each of ``period`` steps (None: the schedule's)."""

    peak: float
    cycles: float
    period: int | None = None


@dataclass(frozen=True)
class CyclicSchedule:
    """Phases of triangles between a base rate and each phase's peak (Sha et al. 2022; Smith 2017 for the triangle).

    Args:
        base: rate between the triangles.
        phases: peaks and numbers of triangles, in order.
        period: steps of one full triangle (up and down).
        up_fraction: share of the triangle that rises, in [0, 1); 0 begins at the peak.
        shape: how the rate goes from base to peak; ``constant`` stays at the peak, ``one_cycle`` rises in a straight
            line and falls along half a cosine.
        peak_decay: factor on the peak for each further cycle of a phase.
        phase_reset: whether each phase starts a new triangle; False keeps one clock through all phases.
        granularity: steps over which the rate is held (1: every step; steps per epoch: every epoch).
        cooldown_steps: steps after the last phase, linear from base to ``cooldown_lr``.
        cooldown_lr: the rate reached after them.
    """

    base: float
    phases: tuple[Phase, ...]
    period: int
    up_fraction: float = 0.5
    shape: Shape = "linear"
    peak_decay: float = 1.0
    phase_reset: bool = True
    granularity: int = 1
    cooldown_steps: int = 0
    cooldown_lr: float = 0.0

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """Steps of each phase, the cooldown left out."""
        return tuple(round(self.period_of(phase) * phase.cycles) for phase in self.phases)

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(self.phase_steps) + self.cooldown_steps

    def period_of(self, phase: Phase) -> int:
        """Steps of one full triangle of a phase."""
        return self.period if phase.period is None else phase.period

    def height_at(self, step: int) -> float:
        """Position in the triangle: 0 at its feet, 1 at its peak; 0 in the cooldown."""
        phase, _, clock = self._locate(step)
        if phase is None:
            return 0.0
        x = self._place(phase, clock)
        return x / self.up_fraction if x < self.up_fraction else (1.0 - x) / (1.0 - self.up_fraction)

    def ends_triangle(self, step: int) -> bool:
        """Whether a triangle is complete after ``step``; False throughout the cooldown."""
        offset = 0
        for phase, length in zip(self.phases, self.phase_steps, strict=True):
            if step < offset + length:
                return (step + 1 - (offset if self.phase_reset else 0)) % self.period_of(phase) == 0
            offset += length
        return False

    def __call__(self, step: int) -> float:
        """Learning rate of ``step``."""
        phase, within, clock = self._locate(step)
        if phase is None:
            return self.base + (self.cooldown_lr - self.base) * within / max(1, self.cooldown_steps)
        period = self.period_of(phase)
        cycle = clock // period - (clock - within) // period  # of this phase, also on a common clock
        peak = phase.peak * self.peak_decay**cycle
        height = self.height_at(step)
        shape: Shape = self.shape
        if shape == "one_cycle":
            shape = "linear" if self._place(phase, clock) < self.up_fraction else "cosine"
        match shape:
            case "linear":
                return self.base + (peak - self.base) * height
            case "cosine":
                return self.base + (peak - self.base) * (1.0 - math.cos(math.pi * height)) / 2.0
            case "exp":
                return float(self.base * (peak / self.base) ** height)
            case _:  # constant
                return peak

    def _place(self, phase: Phase, clock: int) -> float:
        """Share of the triangle that is over, in [0, 1)."""
        return (clock % self.period_of(phase)) / self.period_of(phase)

    def _locate(self, step: int) -> tuple[Phase | None, int, int]:
        """(phase, step within it, step on the triangle's clock); phase None in the cooldown."""
        offset = 0
        for phase, length in zip(self.phases, self.phase_steps, strict=True):
            if step < offset + length:
                within = (step - offset) // self.granularity * self.granularity
                return phase, within, within if self.phase_reset else within + offset
            offset += length
        return None, step - offset, step


@functools.lru_cache(maxsize=64)
def with_equal_mass(schedule: CyclicSchedule) -> CyclicSchedule:
    """The schedule with the peak of each phase moved so that its rates have the sum that linear triangles would give.

    What differs between shapes is then the shape alone: not the steps, and not how far the phase can move the weights
    (`lr_mass`, at one momentum). A phase whose rates do not depend on its peak stays as it is.
    """
    linear = dataclasses.replace(schedule, shape="linear")
    phases, first = list(schedule.phases), 0
    for number, (phase, length) in enumerate(zip(schedule.phases, schedule.phase_steps, strict=True)):
        steps = range(first, first + length)
        first += length

        def mass(peak: float, at: int = number, steps: range = steps) -> float:
            others = (*phases[:at], dataclasses.replace(phases[at], peak=peak), *phases[at + 1 :])
            return math.fsum(map(dataclasses.replace(schedule, phases=others), steps))

        wanted = math.fsum(map(linear, steps))
        # No shape lies above the linear one at half of the lower end.
        low = high = min(schedule.base, phase.peak) / 2
        if mass(2 * low) == mass(low):
            continue
        while mass(high) < wanted:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if mass(middle) < wanted else (low, middle)
        phases[number] = dataclasses.replace(phase, peak=high)
    return dataclasses.replace(schedule, phases=tuple(phases))


def lr_mass(schedule: Schedule, first: int, last: int, momentum_at: Schedule) -> float:
    """Sum of rate / (1 - momentum) over steps first..last-1: how far the phase can move the weights."""
    return math.fsum(schedule(step) / (1.0 - momentum_at(step)) for step in range(first, last))
