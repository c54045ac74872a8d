"""``nsga2``: the genetic algorithm of Deb et al. (2002)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register(
    "nsga2", "genetic algorithm NSGA-II, its population twice search.startup_trials (at most 50)", constraints=True
)
def nsga2(*, seed: int, startup_trials: int) -> BaseSampler:
    """A population that a study of some dozen trials can renew more than once."""
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(population_size=max(2, min(50, startup_trials * 2)), seed=seed)
