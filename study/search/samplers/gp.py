"""``gp``: Bayesian optimisation over a Gaussian process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register("gp", "Gaussian process; good with few, dear trials", constraints=True)
def gp(*, seed: int, startup_trials: int) -> BaseSampler:
    """Fitted anew for every suggestion, which takes seconds after some hundred trials."""
    from optuna.samplers import GPSampler

    return GPSampler(n_startup_trials=startup_trials, seed=seed)
