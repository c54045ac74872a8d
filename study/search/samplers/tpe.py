"""``tpe``: the tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's own for several objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from study.spec.samplers import register

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@register(
    "tpe",
    "tree-structured Parzen estimator, multivariate; learns from search.history trials",
    history=True,
    constraints=True,
    conditions=True,
)
def tpe(
    *, seed: int, startup_trials: int, history: int | None, conditions: bool = False, **changes: Any
) -> BaseSampler:
    """Multivariate, so that settings that go together are drawn together; a running trial counts as a bad one.

    ``changes``: settings of `optuna.samplers.TPESampler` that replace ours.
    """
    from study.search.conditional import ConditionalTPE  # here: a name is checked without importing all of Optuna
    from study.search.recent_tpe import RecentTPE

    made = ConditionalTPE if conditions else RecentTPE
    ours = {"multivariate": True, "constant_liar": True, "n_startup_trials": startup_trials, "seed": seed}
    return made(history, **ours | changes)
