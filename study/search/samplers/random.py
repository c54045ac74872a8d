"""``random``: independent draws; what every other sampler is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register("random", "independent draws from the space", conditions=True)
def random(*, seed: int, startup_trials: int, conditions: bool = False) -> BaseSampler:
    """It learns nothing, so there is nothing to start up, and each parameter is drawn by itself."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)
