"""``nsga2``: the genetic algorithm of Deb et al. (2002)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register(
    "nsga2", "genetic algorithm NSGA-II, its population twice search.startup_trials (at most 50)", constraints=True
)
def nsga2(*, seed: int, startup_trials: int, **changes: Any) -> BaseSampler:
    """A population that a study of some dozen trials can renew more than once.

    ``changes``: settings of `optuna.samplers.NSGAIISampler` that replace ours.
    """
    from optuna.samplers import NSGAIISampler

    ours = {"population_size": max(2, min(50, startup_trials * 2)), "seed": seed}
    return NSGAIISampler(**ours | changes)
