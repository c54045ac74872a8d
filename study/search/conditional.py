"""Asking for settings of which only some have a parameter."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from search_spaces.space import Space
from study.search.recent_tpe import RecentTPE


def ask(study: Study, space: Space) -> Trial:
    """A trial with the parameters that its setting has and no others: what it does not have, Optuna never sees."""
    if not space.conditions:
        return study.ask(dict(space.distributions))
    trial = study.ask()
    space.walk(lambda name, item: _suggest(trial, name, item))
    return trial


def _suggest(trial: Trial, name: str, item: BaseDistribution) -> Any:
    if isinstance(item, CategoricalDistribution):
        return trial.suggest_categorical(name, item.choices)
    if isinstance(item, IntDistribution):
        return trial.suggest_int(name, item.low, item.high, step=item.step, log=item.log)
    assert isinstance(item, FloatDistribution)
    return trial.suggest_float(name, item.low, item.high, step=item.step, log=item.log)


class ConditionalTPE(RecentTPE):
    """TPE over parameters of which some are there only for some settings.

    Optuna's ``group``: parameters that always go together have one model, learned from the settings that have them; all
    others are no observations of it. The value of a parameter does not depend on the choice that brought it.
    """

    def __init__(self, history: int | None, **settings: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            super().__init__(history, group=True, **settings)

    def _get_params(self, trial: FrozenTrial, *args: Any) -> dict[str, Any]:
        """Of a running trial what it has: Optuna would add what was drawn for it and then not used."""
        return trial.params or super()._get_params(trial, *args)
