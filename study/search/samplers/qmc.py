"""``qmc``: a quasi-random sequence (Sobol 1967, scrambled by Owen's method)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register("qmc", "quasi-random points (Sobol): they leave fewer gaps than random ones, and learn nothing either")
def qmc(*, seed: int, startup_trials: int) -> BaseSampler:
    """It learns nothing, so there is nothing to start up."""
    from study.search.quasi_random import quasi_random

    return quasi_random(seed)
