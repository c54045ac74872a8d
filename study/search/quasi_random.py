"""Quasi-random points: as a sampler of its own, and as the start of one that learns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


def quasi_random(seed: int) -> QMCSampler:
    """Optuna's scrambled Sobol sequence; a new seed is another sequence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)


class QuasiRandomStart(BaseSampler):
    """A sampler that draws quasi-random points where it would draw random ones, until enough trials are finished.

    Args:
        then: the sampler.
        seed: of the sequence.
        startup_trials: finished trials after which ``then`` goes on alone.
    """

    def __init__(self, then: BaseSampler, *, seed: int, startup_trials: int) -> None:
        self._then, self._first, self._startup_trials = then, quasi_random(seed), startup_trials
        self._over = False
        self._own_space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space of both, so that the values of either are taken."""
        self._own_space = self._then.infer_relative_search_space(study, trial)
        if self._is_over(study):
            return self._own_space
        return {**self._first.infer_relative_search_space(study, trial), **self._own_space}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Of ``then``, which is asked each time: a genetic algorithm counts its first generation so."""
        values = self._then.sample_relative(study, trial, self._own_space)
        # A point that was put in by hand needs no values: it would only leave a gap in the sequence.
        if values or self._is_over(study) or "fixed_params" in trial.system_attrs:
            return values
        return self._first.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of ``then``."""
        return self._then.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Of ``then``."""
        self._then.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Of ``then``."""
        self._then.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Of ``then``; a sequence has no state of its own."""
        self._then.reseed_rng()

    def _is_over(self, study: Study) -> bool:
        if not self._over:
            finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            self._over = len(finished) >= self._startup_trials
        return self._over
