"""The Optuna trials of one search, one for each setting: what is written to its storage, and what was told."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces.space import fingerprint, within
from study.plan.jobs import Search
from study.results.scores import WORST, Values
from study.search.conditional import ask
from study.search.optuna_study import open_study

# User attribute of the published point where a detector was tuned: its parameters are the searched ones alone.
PUBLISHED = "published"
# User attribute of a setting from another study's front: the name of that study.
WARM_START = "warm_start"
# Optuna's system attribute of a constraint, as `Trial.set_constraint` names it; above 0 it is broken.
CONSTRAINT = "constraints:accuracy_floor"


class Trials:
    """Begins and ends the trials of a search, under the ids that its settings have in the ledger.

    Args:
        search: whose settings they are; another one with the same label and space may take its place.
        storage: where they are written.
        name: of the Optuna study.
        accuracy_floor: most clean accuracy that a setting may give up (a fraction); None: as much as it wants.

    Raises:
        SpecError: the storage holds a study of that name with other directions or another space.
    """

    def __init__(self, search: Search, storage: BaseStorage, name: str, *, accuracy_floor: float | None = None) -> None:
        self.search, self.storage, self.accuracy_floor = search, storage, accuracy_floor
        self.study = open_study(storage, name, search.space)
        self.study_id = storage.get_study_id_from_name(name)
        self.told: dict[str, Values | None] = {}
        self._open: dict[str, int] = {}
        self._violations: dict[str, float] = {}
        self._dropped = set[str]()
        self._told_failed: dict[str, dict[str, Any]] = {}

    def ask(self) -> Trial:
        """A new trial with the sampler's suggestion, or with the next point that waits."""
        return ask(self.study, self.search.space)

    def begin(self, trial: Trial, trial_id: str) -> None:
        """A suggestion is to be measured, under this id."""
        trial.set_user_attr("id", trial_id)
        self._open[trial_id] = trial.number

    def ask_again(self, trial_id: str, settings: Mapping[str, Any]) -> None:
        """A trial for a setting that was asked before and that the storage does not know.

        Made as it is, not asked for: an ask would take the oldest of the points that wait.
        """
        params = self._params(settings)
        made = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: self.search.space.distributions[name] for name in params},
            user_attrs={"id": trial_id, **self.mark(settings)},
        )
        self._open[trial_id] = self.storage.get_trial_number_from_id(self.storage.create_new_trial(self.study_id, made))

    def take_up(self, trial_id: str, number: int) -> None:
        """A trial that runs in the storage already is to be ended here."""
        self._open[trial_id] = number

    def leave_out(self, trial: Trial) -> None:
        """A suggestion is not to be measured."""
        trial.set_user_attr("left_out", True)
        self._finish(trial.number, None)

    def repeat(self, trial: Trial, known: str) -> None:
        """A suggestion is a setting that has that id already: told what that one was, as far as it is known."""
        trial.set_user_attr("repeats", known)
        self._finish(trial.number, self.told.get(known), self._violations.get(known), self._without_values(known))

    def tell(self, trial_id: str, values: Values | None, remarks: Mapping[str, Any] = MappingProxyType({})) -> None:
        """End a setting's trial, see `OptunaSearch.tell`; one that Optuna counts as failed is told as a new trial."""
        if values is not None and not all(map(math.isfinite, values)):
            values = WORST
        self.told[trial_id] = values
        self.note(trial_id, remarks)
        if trial_id in self._open:
            number = self._open.pop(trial_id)
            for key, value in remarks.items():
                self.storage.set_trial_user_attr(self._storage_id(number), key, value)
            self._finish(number, values, self._violations.get(trial_id), self._without_values(trial_id))
        elif values is not None and (settings := self._told_failed.pop(trial_id, None)) is not None:
            self.restore(trial_id, values, settings, remarks)

    def drop(self, trial_ids: Collection[str]) -> None:
        """These settings were dropped in a race: what ends of them without values has the state ``PRUNED``."""
        self._dropped.update(trial_ids)

    def note(self, trial_id: str, remarks: Mapping[str, Any]) -> None:
        """What a setting gives up beyond the accuracy floor."""
        if self.accuracy_floor is not None and "accuracy_drop" in remarks:
            self._violations[trial_id] = remarks["accuracy_drop"] - self.accuracy_floor

    def told_failed(self, trial_id: str, settings: dict[str, Any]) -> None:
        """Optuna counts a setting as failed that is measured again: its values follow as a trial of their own."""
        self._told_failed[trial_id] = settings

    def restore(
        self, trial_id: str, values: Values | None, settings: Mapping[str, Any], remarks: Mapping[str, Any]
    ) -> None:
        """A finished trial, made from what the ledger says of its setting."""
        params = self._params(settings)
        distributions = {name: self.search.space.distributions[name] for name in params}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=self._without_values(trial_id) if values is None else TrialState.COMPLETE,
                params=params,
                distributions=distributions,
                values=None if values is None else list(values),
                user_attrs={"id": trial_id, **self.mark(settings), **remarks},
                system_attrs={CONSTRAINT: self._violations[trial_id]} if trial_id in self._violations else None,
            )
        )

    def give_up(self, number: int) -> None:
        """End a trial that nobody will run."""
        self.study.tell(number, state=TrialState.FAIL)

    def abandon(self) -> None:
        """End all trials that were asked and will never be run."""
        for number in self._open.values():
            self.give_up(number)
        self._open.clear()

    def settings_of(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """The defense's settings of a trial."""
        if PUBLISHED in trial.user_attrs:
            return self.search.published_settings()
        return self.search.settings(trial.params)

    def mark(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """User attributes of the trial with these settings: of the published point, where a detector is tuned."""
        if self.search.detector is None:
            return {}
        published = fingerprint(self.search.decided(settings)) == fingerprint(self.search.published_settings())
        return {PUBLISHED: True} if published else {}

    def _params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The searched parameters of settings, put back into their ranges where rounding left them just outside."""
        params = self.search.space.params_of(settings)
        return {name: within(value, self.search.space.distributions[name]) for name, value in params.items()}

    def _without_values(self, trial_id: str) -> TrialState:
        """What a trial is to Optuna that ends without values."""
        return TrialState.PRUNED if trial_id in self._dropped else TrialState.FAIL

    def _storage_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _finish(
        self,
        number: int,
        values: Values | None,
        violation: float | None = None,
        without_values: TrialState = TrialState.FAIL,
    ) -> None:
        if violation is not None:
            self.storage.set_trial_system_attr(self._storage_id(number), CONSTRAINT, violation)
        if values is None:
            self.study.tell(number, state=without_values)
        else:
            self.study.tell(number, values)
