"""TPE that stays quick over thousands of trials."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special
from numpy.random import RandomState
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from study.results.pareto import RunningFront

if TYPE_CHECKING:
    from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator


# Finished trials that a search learns from where its spec does not say: as many as ever make a difference, and few
# enough that an ask costs the same after ten thousand.
HISTORY = 1000
# So many of the running trials are asked for with one model. All of them run at once without knowing of each other;
# what a model costs to build is then shared. Below 20 running trials each ask has a model of its own.
ASKED_TOGETHER = 0.1
# So many of them are drawn at once: a call costs more than its numbers, as long as their arrays stay in the processor's
# cache (with 1,200 kernels of four parameters 8 at once take 0.7 of the time of each by itself, 32 take 0.9).
DRAWN_TOGETHER = 8


class RecentTPE(TPESampler):
    """TPE over the newest ``history`` finished trials and the newest ``history`` on the front, besides those running.

    An ask of plain TPE grows with all trials there are; here it stops growing. What is forgotten is old and dominated:
    the split into good and bad trials is then made among those that are left, which changes the search. While many
    trials run, some asks in a row share one model: the trials that were asked with it count in it no more than results
    that have not come yet. A pruned trial is never a good one.

    Args:
        history: trials; None: `HISTORY`.
        settings: of `TPESampler`.
    """

    def __init__(self, history: int | None, **settings: Any) -> None:
        super().__init__(**settings)
        use_fast_tails()
        self._history = HISTORY if history is None else history
        self._front: _Front | None = None
        self._models: dict[frozenset[str], _Model] = {}
        self._dropped: list[FrozenTrial] = []

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        model = self._models.get(frozenset(search_space))
        if model is not None and model.space == search_space and (settings := model.next(self._rng.rng)) is not None:
            return settings
        seen = _Recent(study, self._history, set(self._front_of(study)))
        return super()._sample_relative(seen, trial, search_space)  # type: ignore[arg-type]

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        self._built: list[_ParzenEstimator] = []
        settings: dict[str, Any] = super()._sample(study, trial, search_space)
        running = len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        left = int(ASKED_TOGETHER * running) - 1
        good, bad = self._built
        self._models[frozenset(search_space)] = _Model(search_space, good, bad, self._n_ei_candidates, max(0, left))
        return settings

    def _build_parzen_estimator(
        self, study: Study, search_space: dict[str, BaseDistribution], trials: list[FrozenTrial], handle_below: bool
    ) -> _ParzenEstimator:
        # Where fewer trials were measured than belong to the good ones, Optuna fills these up with pruned ones, before
        # any that broke a constraint. Ours were dropped because they are beaten beyond doubt.
        if handle_below:
            self._dropped = [trial for trial in trials if trial.state == TrialState.PRUNED]
            trials = [trial for trial in trials if trial.state != TrialState.PRUNED]
        else:
            trials = sorted([*trials, *self._dropped], key=lambda trial: trial.number)
        self._built.append(super()._build_parzen_estimator(study, search_space, trials, handle_below))
        return self._built[-1]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        super().after_trial(study, trial, state, values)
        if state == TrialState.COMPLETE and values is not None and self._front is not None:
            self._front.add(study, trial.number, values)

    def _front_of(self, study: Study) -> list[int]:
        """Numbers of the newest ``history`` trials on the front; found once, then kept up."""
        if self._front is None:
            self._front = _Front()
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                self._front.add(study, trial.number, trial.values)
        return self._front.numbers()[-self._history :]


class _Front:
    """Which trials are on the front of two objectives; of one, which trial is the best."""

    def __init__(self) -> None:
        self._front, self._numbers = RunningFront(), dict[tuple[float, float], int]()

    def add(self, study: Study, number: int, values: Sequence[float]) -> None:
        """A trial with its values."""
        costs = [
            -value if direction == StudyDirection.MAXIMIZE else value
            for value, direction in zip(values, study.directions, strict=True)
        ]
        first, second = costs[0], costs[-1]
        if self._front.add(first, -second):
            self._numbers[first, -second] = number

    def numbers(self) -> list[int]:
        """Those on it, ascending."""
        self._numbers = {point: self._numbers[point] for point in self._front.points}
        return sorted(self._numbers.values())


def use_fast_tails() -> None:
    """Let TPE take the normal distribution's log tail and log mass from SciPy, the same functions for whole arrays.

    It needs them for both ends of every kernel. Optuna's own go through the tails one by one in Python, which is most
    of the time of an ask, and compute masses with complex numbers, which is most of the rest once a model serves
    several asks. They are private to Optuna: where they go by another name, asks are as slow as Optuna makes them.
    """
    with contextlib.suppress(ImportError):
        from optuna.samplers._tpe import _truncnorm

        _truncnorm._log_ndtr = scipy.special.log_ndtr
        _truncnorm._log_gauss_mass = log_mass


def log_mass(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log of the standard normal mass between ``a`` and ``b``, arrays of one shape with a <= b.

    Both in the right tail are mirrored to the left, where the tail's logarithm is precise.
    """
    right = a > 0
    a, b = np.where(right, -b, a), np.where(right, -a, b)
    found, left = np.empty_like(a), b <= 0
    tail = scipy.special.log_ndtr(b[left])
    found[left] = tail + np.log1p(-np.exp(scipy.special.log_ndtr(a[left]) - tail))
    middle = ~left
    found[middle] = np.log1p(-scipy.special.ndtr(a[middle]) - scipy.special.ndtr(-b[middle]))
    return found


@dataclass
class _Model:
    """What good and bad trials look like, for ``left`` further asks of so many candidates each."""

    space: dict[str, BaseDistribution]
    good: _ParzenEstimator
    bad: _ParzenEstimator
    candidates: int
    left: int
    _drawn: list[dict[str, Any]] = field(default_factory=list)

    def next(self, generator: RandomState) -> dict[str, Any] | None:
        """Parameters for one more ask; None: the model has served all of its asks."""
        if not self._drawn:
            asks = min(self.left, DRAWN_TOGETHER)
            self.left -= asks
            self._drawn = self._draw(generator, asks) if asks else []
        return self._drawn.pop() if self._drawn else None

    def _draw(self, generator: RandomState, asks: int) -> list[dict[str, Any]]:
        """For each ask the best of its candidates, drawn and weighed as `TPESampler` does it for one."""
        drawn = self.good.sample(generator, asks * self.candidates)
        gains = (self.good.log_pdf(drawn) - self.bad.log_pdf(drawn)).reshape(asks, self.candidates)
        best = np.arange(asks) * self.candidates + gains.argmax(axis=1)
        return [
            {name: of.to_external_repr(drawn[name][place].item()) for name, of in self.space.items()} for place in best
        ]


class _Recent:
    """A study that shows a sampler only some of its finished trials, as Optuna's own pruners do it for theirs."""

    def __init__(self, study: Study, history: int, front: set[int]) -> None:
        self._study, self._history, self._front = study, history, front

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy, states, use_cache)
        # Those without a result (failed, left out, repeated) tell nothing, and take no place.
        told = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if len(told) <= self._history:
            return trials
        oldest = told[-self._history].number
        return [t for t in trials if t.number >= oldest or not t.state.is_finished() or t.number in self._front]
