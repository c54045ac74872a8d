"""Samplers with other settings than our defaults, to be compared with them on a table: a plug-in of `superft simulate`.

    superft simulate benchmarks/tables/table-digits/table.json --noise --seeds 30 \\
        --plugin benchmarks/sampler_settings.py \\
        --samplers tpe,tpe_independent,tpe_8_candidates,tpe_96_candidates,tpe_few_good,tpe_many_good

What each is, says ``superft list samplers --plugin benchmarks/sampler_settings.py``; what came of it,
docs/simulate.md. A setting is worth a key of `search` only if it moves the front, and none of these has one.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from study.search.samplers.nsga2 import nsga2
from study.search.samplers.tpe import tpe
from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register("tpe_independent", "tpe, each parameter by itself")
def tpe_independent(*, seed: int, startup_trials: int) -> BaseSampler:
    return tpe(seed=seed, startup_trials=startup_trials, history=None, multivariate=False)


@register("tpe_no_liar", "tpe that knows nothing of running trials")
def tpe_no_liar(*, seed: int, startup_trials: int) -> BaseSampler:
    return tpe(seed=seed, startup_trials=startup_trials, history=None, constant_liar=False)


@register("tpe_8_candidates", "tpe that takes the best of 8 draws, not of 24")
def tpe_8_candidates(*, seed: int, startup_trials: int) -> BaseSampler:
    return tpe(seed=seed, startup_trials=startup_trials, history=None, n_ei_candidates=8)


@register("tpe_96_candidates", "tpe that takes the best of 96 draws, not of 24")
def tpe_96_candidates(*, seed: int, startup_trials: int) -> BaseSampler:
    return tpe(seed=seed, startup_trials=startup_trials, history=None, n_ei_candidates=96)


@register("tpe_few_good", "tpe whose good settings are a quarter of the root of all, not a tenth of all")
def tpe_few_good(*, seed: int, startup_trials: int) -> BaseSampler:
    """As many as Hyperopt takes (Bergstra et al. 2013)."""
    return tpe(
        seed=seed, startup_trials=startup_trials, history=None, gamma=lambda n: min(math.ceil(0.25 * math.sqrt(n)), 25)
    )


@register("tpe_many_good", "tpe whose good settings are a quarter of all, not a tenth")
def tpe_many_good(*, seed: int, startup_trials: int) -> BaseSampler:
    return tpe(seed=seed, startup_trials=startup_trials, history=None, gamma=lambda n: min(math.ceil(0.25 * n), 50))


@register("tpe_plain", "Optuna's own TPE: all trials, and a model for every ask")
def tpe_plain(*, seed: int, startup_trials: int) -> BaseSampler:
    """What sharing a model between asks costs shows beside it, with 20 slots or more."""
    from optuna.samplers import TPESampler

    return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=startup_trials, seed=seed)


@register("nsga2_population_10", "nsga2 with a population of 10, not of 20")
def nsga2_population_10(*, seed: int, startup_trials: int) -> BaseSampler:
    return nsga2(seed=seed, startup_trials=startup_trials, population_size=10)


@register("nsga2_population_50", "nsga2 with Optuna's population of 50, not of 20")
def nsga2_population_50(*, seed: int, startup_trials: int) -> BaseSampler:
    return nsga2(seed=seed, startup_trials=startup_trials, population_size=50)


@register("nsga2_sbx", "nsga2 that crosses by simulated binary crossover, not value by value")
def nsga2_sbx(*, seed: int, startup_trials: int) -> BaseSampler:
    """Deb & Agrawal 1995, the operator of the paper of NSGA-II."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers.nsgaii import SBXCrossover

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return nsga2(seed=seed, startup_trials=startup_trials, crossover=SBXCrossover())
