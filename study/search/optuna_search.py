"""Optuna ask/tell for one search: the published point first, nothing evaluated twice, no trial left running."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces.conditions import Conditions
from search_spaces.space import fingerprint, within
from study.plan.jobs import Plan, Search
from study.record.optuna_storage import together
from study.results.scores import WORST, Values
from study.search.conditional import ask
from study.search.quasi_random import QuasiRandomStart
from study.search.unseen import grid, unseen_params
from study.search.warm_start import WarmPoint
from study.spec.samplers import make_sampler
from study.spec.yaml_io import SpecError
from trainables.seeding import derive_seed

P = ParamSpec("P")
R = TypeVar("R")
METRICS = ("asr", "clean_accuracy")
DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
# Consecutive suggestions of known settings after which a new one is looked for without the sampler: it may repeat
# itself long before a small space is searched through.
MOST_REPEATS = 10
# User attribute of the published point where a detector was tuned: its parameters are the searched ones alone.
PUBLISHED = "published"
# User attribute of a setting from another study's front: the name of that study.
WARM_START = "warm_start"
# User attribute of a point that the space names to begin with: its name.
START = "start"
# Optuna's system attribute of a constraint, as `Trial.set_constraint` names it; above 0 it is broken.
CONSTRAINT = "constraints:accuracy_floor"
# Suggestions in a row that do not fit into what is left of a budget, after which a search has ended: its sampler goes
# on to propose settings of all lengths.
MOST_REFUSALS = 20


def _any_settings(settings: Mapping[str, Any]) -> bool:
    return True


def _in_one_piece(method: Callable[Concatenate[OptunaSearch, P], R]) -> Callable[Concatenate[OptunaSearch, P], R]:
    """What the method writes to a journal goes there at its end: a killed driver has done all of it or nothing."""

    @wraps(method)
    def wrapped(search: OptunaSearch, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with together(search._storage):
            return method(search, *args, **kwargs)

    return wrapped


def open_searches(
    plan: Plan, storage: BaseStorage, warm: Mapping[str, Sequence[WarmPoint]] = MappingProxyType({})
) -> list[OptunaSearch]:
    """The plan's searches, in its order, all in one storage.

    Args:
        warm: settings to begin with by the label of the search, see `warm_start.warm_points`.
    """
    spec = plan.spec
    return [
        OptunaSearch(
            search,
            storage,
            study_name=spec.name,
            sampler=spec.search.sampler,
            seed=spec.seeds[0],
            startup_trials=spec.search.startup_trials,
            history=spec.search.history,
            target=plan.most_settings(search),
            published=spec.search.published,
            startup=spec.search.startup,
            accuracy_floor=spec.search.accuracy_floor,
            warm=warm.get(search.label, ()),
        )
        for search in plan.searches
    ]


def space_hash(distributions: Mapping[str, BaseDistribution], conditions: Conditions = MappingProxyType({})) -> str:
    """Digest of a search space; a study continued under another one would mix incomparable trials."""
    text = json.dumps({name: distribution_to_json(item) for name, item in distributions.items()}, sort_keys=True)
    if conditions:
        told = {name: [(one.parameter, one.among) for one in needed] for name, needed in conditions.items()}
        text += json.dumps(told, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class OptunaSearch:
    """One `Search` of the plan as an Optuna study.

    Args:
        search: what is searched.
        storage: shared by all searches of the study.
        study_name: name of the whole study; Optuna's is ``study_name/label``.
        sampler, seed, startup_trials, history: see `make_sampler`; the seed moves on with the number of existing
            trials, so that a restarted sampler does not draw its start-up points again.
        target: settings to be finished.
        published: whether the first of them is the published point.
        startup: how start-up settings are drawn, ``random`` or ``qmc``.
        accuracy_floor: most clean accuracy that a setting may give up (a fraction); None: as much as it wants.
        warm: settings that a search without any begins with, after the published point.

    Raises:
        SpecError: the storage holds a study of that name with other directions or another space.
    """

    def __init__(
        self,
        search: Search,
        storage: BaseStorage,
        *,
        study_name: str,
        sampler: str,
        seed: int,
        startup_trials: int,
        target: int,
        history: int | None = None,
        published: bool = True,
        startup: str = "random",
        accuracy_floor: float | None = None,
        warm: Sequence[WarmPoint] = (),
    ) -> None:
        self.begins_published = published
        self.startup, self.accuracy_floor, self._warm = startup, accuracy_floor, tuple(warm)
        self._violations: dict[str, float] = {}
        self._dropped = set[str]()
        self.origins: dict[str, str] = {}
        self.search, self.target, self._storage = search, target, storage
        self.exhausted = False
        self._used: set[str] = set()
        self._open: dict[str, int] = {}
        self._told: dict[str, Values | None] = {}
        self._next = 0
        self._by_settings: dict[str, str] = {}
        self._told_failed: dict[str, dict[str, Any]] = {}
        name = f"{study_name}/{search.label}"
        known = optuna.study.get_all_study_names(storage)
        if name in known:  # opened without a write: looking at a finished study changes nothing
            self.study = optuna.load_study(study_name=name, storage=storage)
        else:
            self.study = optuna.create_study(study_name=name, storage=storage, directions=list(DIRECTIONS))
        self._study_id = storage.get_study_id_from_name(name)
        of_space = space_hash(search.space.distributions, search.space.conditions)
        existing = len(self.study.get_trials(deepcopy=False))
        # Without trials and space: new, or left by a driver that was killed right here.
        if name not in known or (existing == 0 and "space" not in self.study.user_attrs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(list(METRICS))  # labels in optuna-dashboard
            self.study.set_user_attr("space", of_space)
        if list(self.study.directions) != list(DIRECTIONS):
            raise SpecError(f"search.storage holds a study {name!r} with other directions; choose another study name")
        if self.study.user_attrs.get("space") != of_space:
            raise SpecError(
                f"search.storage holds a study {name!r} with another search space; choose another study name"
            )
        self.sampler, self.seed, self.startup_trials, self.history = sampler, seed, startup_trials, history
        self.study.sampler = self._make_sampler(sampler, existing)

    @_in_one_piece
    def resume(
        self,
        finished: Mapping[str, Values | None],
        started: Mapping[str, Mapping[str, Any]],
        remarks: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
        dropped: Collection[str] = (),
    ) -> list[tuple[str, dict[str, Any]]]:
        """Bring Optuna up to the ledger, and return the settings that were asked but not finished.

        Args:
            finished: what the ledger says of each trial id with all its cells measured (None: all of them failed).
            started: settings of each trial id that has any row.
            remarks: of each trial id that is finished, see `tell`.
            dropped: which of the finished ones were dropped in a race, see `drop`.

        Returns:
            (trial id, settings) to be run again, under the Optuna trials they already have.
        """
        self._dropped.update(dropped)
        for finished_id, remark in remarks.items():
            self._note(finished_id, remark)
        trials = self.study.get_trials(deepcopy=False)
        present = {trial.user_attrs["id"] for trial in trials if "id" in trial.user_attrs}
        self.origins |= {
            t.user_attrs["id"]: t.user_attrs[WARM_START]
            for t in trials
            if WARM_START in t.user_attrs and "id" in t.user_attrs
        }
        unfinished: dict[str, dict[str, Any]] = {}
        for trial in trials:
            trial_id = trial.user_attrs.get("id")
            if trial.state.is_finished() and trial_id is not None and trial_id not in finished:
                # Its row was lost with a damaged line, or failed and was taken out: measured again. Optuna keeps what
                # it was told; what has no values there told it none, so they follow as a trial of their own.
                unfinished[trial_id] = self._settings_of(trial)
                if trial.state in (TrialState.FAIL, TrialState.PRUNED):
                    self._told_failed[trial_id] = unfinished[trial_id]
            if trial.state != TrialState.RUNNING:
                continue
            if trial_id is None or set(trial.params) != set(self.search.space.names_of(trial.params)):
                self.study.tell(trial.number, state=TrialState.FAIL)  # the driver was killed while asking it
                continue
            self._open[trial_id] = trial.number
            if trial_id in finished:
                self.tell(trial_id, finished[trial_id], remarks.get(trial_id, {}))
            else:
                unfinished[trial_id] = self._settings_of(trial)
        for trial_id in sorted(started):
            if trial_id in present:
                continue
            # The storage was deleted or is another one: the ledger is the truth.
            if trial_id in finished:
                self._restore(trial_id, finished[trial_id], started[trial_id], remarks.get(trial_id, {}))
            else:
                self.study.enqueue_trial(self._params(started[trial_id]), user_attrs=self._mark(started[trial_id]))
                trial_again = ask(self.study, self.search.space)
                trial_again.set_user_attr("id", trial_id)
                self._open[trial_id] = trial_again.number
                unfinished[trial_id] = self._own(started[trial_id])
        for trial_id, values in finished.items():
            self._told[trial_id] = values
            self._by_settings.setdefault(fingerprint(self._own(started[trial_id])), trial_id)
        for trial_id, settings in unfinished.items():
            self._by_settings.setdefault(fingerprint(settings), trial_id)
        self._used = {*finished, *unfinished}
        if len(trials) < len(self._used):  # a storage made anew: its number of trials tells nothing
            self.study.sampler = self._make_sampler(self.sampler, len(self._used))
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        published = self.search.published_settings()
        if self.begins_published and not waiting and fingerprint(published) not in self._by_settings:
            self.study.enqueue_trial(self.search.paper_params(), user_attrs=self._mark(published))
        self._enqueue_starts()
        self._enqueue_warm()
        self._enqueue_tuned()
        return sorted(unfinished.items())

    def _enqueue_starts(self) -> None:
        """Ask soon for the further points that the space begins with, unless they wait or were asked already."""
        if not self.begins_published:
            return
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        there = {trial.user_attrs.get(START) for trial in waiting}
        for name, params in self.search.space.starting_points().items():
            if name not in there and fingerprint(self.search.settings(params)) not in self._by_settings:
                self.study.enqueue_trial(params, user_attrs={START: name})

    def _enqueue_warm(self) -> None:
        """Ask soon for what other studies found; of a search that has begun, they wait in its storage or were asked."""
        if self._used:
            return
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        known = {fingerprint(trial.system_attrs["fixed_params"]) for trial in waiting}
        known |= {fingerprint(self.search.paper_params())} if self.begins_published else set()
        for point in self._warm:
            if fingerprint(point.params) not in known:
                self.study.enqueue_trial(dict(point.params), user_attrs={WARM_START: point.origin})

    def replan(self, search: Search, target: int) -> None:
        """Go on with what became of `search`: other cells, or the detector that was chosen; same label and space."""
        self.search, self.target = search, target
        self._enqueue_tuned()

    def _enqueue_tuned(self) -> None:
        """Ask soon for the published rate beside the detector that was chosen: else nothing shows what that changed."""
        if self.search.tuned is None or not self.begins_published or not self.search.begins_beside:
            return
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if all({PUBLISHED, WARM_START} & set(trial.user_attrs) for trial in waiting):
            first = self.search.settings(self.search.paper_params())
            if fingerprint(first) not in self._by_settings:
                self.study.enqueue_trial(self.search.paper_params())

    @property
    def asked(self) -> int:
        """Settings asked so far, finished or not."""
        return len(self._used)

    @property
    def told(self) -> int:
        """Trials with values that Optuna's storage holds."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    @property
    def finished(self) -> int:
        """Settings finished so far."""
        return len(self._told)

    @_in_one_piece
    def ask(self, fits: Callable[[Mapping[str, Any]], bool] = _any_settings) -> tuple[str, dict[str, Any]] | None:
        """The next setting and its id; None when enough were asked, the space holds no new one, or none ``fits``.

        A suggestion that was evaluated before is told its known values at once and not counted. One that does not fit
        is left out (Optuna: failed, user attribute ``left_out``); after `MOST_REFUSALS` of them there is none.

        Args:
            fits: whether settings may run now, under a budget for one.
        """
        repeats, refusals, own = 0, 0, self.study.sampler
        while self.asked < self.target and not self.exhausted and refusals < MOST_REFUSALS:
            trial = ask(self.study, self.search.space)
            settings = self._settings_of(trial)
            known = self._by_settings.get(fingerprint(settings))
            if known is None and not fits(settings):
                refusals += 1
                trial.set_user_attr("left_out", True)
                self._finish(trial.number, None)
                continue
            if known is None:
                trial_id = self._new_id()
                trial.set_user_attr("id", trial_id)
                self._open[trial_id] = trial.number
                self._by_settings[fingerprint(settings)] = trial_id
                self._used.add(trial_id)
                if (origin := trial.user_attrs.get(WARM_START)) is not None:
                    self.origins[trial_id] = origin
                self.study.sampler = own
                return trial_id, settings
            trial.set_user_attr("repeats", known)
            self._finish(trial.number, self._told.get(known), self._violations.get(known), self._without_values(known))
            repeats += 1
            if repeats >= MOST_REPEATS and (choices := grid(self.search)):
                unseen = unseen_params(self.search, choices, self._by_settings, len(self._used))
                self.exhausted = unseen is None
                if unseen is not None:
                    self.study.enqueue_trial(unseen)
            elif repeats == MOST_REPEATS:
                self.study.sampler = self._make_sampler("random", trial.number)
        return None

    @_in_one_piece
    def tell(self, trial_id: str, values: Values | None, remarks: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Finish a setting with (ASR, clean accuracy); None, where nothing could be measured, ends it as failed.

        Values that are not finite are told as the worst point: a failure would teach the sampler nothing.

        Args:
            trial_id: of the setting.
            values: on the search half.
            remarks: kept with the Optuna trial as user attributes, for people who look there; no sampler reads them,
                unless there is an accuracy floor: then ``accuracy_drop`` less the floor is the trial's constraint.
        """
        if values is not None and not all(map(math.isfinite, values)):
            values = WORST
        self._told[trial_id] = values
        self._note(trial_id, remarks)
        if trial_id in self._open:
            number = self._open.pop(trial_id)
            for key, value in remarks.items():
                self._storage.set_trial_user_attr(self._storage_id(number), key, value)
            self._finish(number, values, self._violations.get(trial_id), self._without_values(trial_id))
        elif values is not None and (settings := self._told_failed.pop(trial_id, None)) is not None:
            self._restore(trial_id, values, settings, remarks)

    def drop(self, trial_id: str, remarks: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Finish a setting that was dropped in a race: Optuna's state ``PRUNED``, without values.

        What it would have come to was not measured, and a mean over some of its cells is no mean over all. Of such a
        trial TPE takes its parameters alone, among those that are not worth repeating; NSGA-II and GP learn nothing.
        """
        self._dropped.add(trial_id)
        self.tell(trial_id, None, remarks)

    def _without_values(self, trial_id: str) -> TrialState:
        """What a trial is to Optuna that ends without values."""
        return TrialState.PRUNED if trial_id in self._dropped else TrialState.FAIL

    def _note(self, trial_id: str, remarks: Mapping[str, Any]) -> None:
        """What a setting gives up beyond the accuracy floor."""
        if self.accuracy_floor is not None and "accuracy_drop" in remarks:
            self._violations[trial_id] = remarks["accuracy_drop"] - self.accuracy_floor

    def abandon(self) -> None:
        """End the trials that were asked and will never be run."""
        for number in self._open.values():
            self.study.tell(number, state=TrialState.FAIL)
        self._open.clear()

    def _storage_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _finish(
        self,
        number: int,
        values: Values | None,
        violation: float | None = None,
        without_values: TrialState = TrialState.FAIL,
    ) -> None:
        if violation is not None:
            self._storage.set_trial_system_attr(self._storage_id(number), CONSTRAINT, violation)
        if values is None:
            self.study.tell(number, state=without_values)
        else:
            self.study.tell(number, values)

    def _restore(
        self, trial_id: str, values: Values | None, settings: Mapping[str, Any], remarks: Mapping[str, Any]
    ) -> None:
        params = self._params(settings)
        distributions = {name: self.search.space.distributions[name] for name in params}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=self._without_values(trial_id) if values is None else TrialState.COMPLETE,
                params=params,
                distributions=distributions,
                values=None if values is None else list(values),
                user_attrs={"id": trial_id, **self._mark(settings), **remarks},
                system_attrs={CONSTRAINT: self._violations[trial_id]} if trial_id in self._violations else None,
            )
        )

    def _make_sampler(self, name: str, count: int) -> BaseSampler:
        seed = derive_seed(self.seed, "sampler", self.search.label, count)
        conditions = bool(self.search.space.conditions)
        made = make_sampler(
            name, seed=seed, startup_trials=self.startup_trials, history=self.history, conditions=conditions
        )
        if self.startup == "random" or name != self.sampler:
            return made
        return QuasiRandomStart(made, seed=seed % 2**32, startup_trials=self.startup_trials)

    def _params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The searched parameters of settings, put back into their ranges where rounding left them just outside."""
        params = self.search.space.params_of(settings)
        return {name: within(value, self.search.space.distributions[name]) for name, value in params.items()}

    def _new_id(self) -> str:
        while (trial_id := self.search.trial_id(self._next)) in self._used:
            self._next += 1
        return trial_id

    def _settings_of(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        if PUBLISHED in trial.user_attrs:
            return self.search.published_settings()
        return self.search.settings(trial.params)

    def _mark(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """User attributes of the trial with these settings: of the published point, where a detector is tuned."""
        if self.search.detector is None:
            return {}
        published = fingerprint(self._own(settings)) == fingerprint(self.search.published_settings())
        return {PUBLISHED: True} if published else {}

    def _own(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A ledger row's settings, cut to those that this search decides or fixes."""
        return self.search.decided(settings)
