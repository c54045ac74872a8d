"""Optuna ask/tell for one search: the published point first, nothing evaluated twice, no trial left running."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from search_spaces.space import fingerprint
from study.plan.jobs import Plan, Search
from study.record.optuna_storage import together
from study.results.scores import Values
from study.search.first_points import FirstPoints
from study.search.quasi_random import QuasiRandomStart
from study.search.resuming import bring_up_to_ledger
from study.search.trials import WARM_START, Trials
from study.search.unseen import grid, unseen_params
from study.search.warm_start import WarmPoint
from study.spec.samplers import make_sampler
from trainables.seeding import derive_seed

P = ParamSpec("P")
R = TypeVar("R")
# Consecutive suggestions of known settings after which a new one is looked for without the sampler: it may repeat
# itself long before a small space is searched through.
MOST_REPEATS = 10
# Suggestions in a row that do not fit into what is left of a budget, after which a search has ended: its sampler goes
# on to propose settings of all lengths.
MOST_REFUSALS = 20


def _any_settings(settings: Mapping[str, Any]) -> bool:
    return True


def _in_one_piece(method: Callable[Concatenate[OptunaSearch, P], R]) -> Callable[Concatenate[OptunaSearch, P], R]:
    """What the method writes to a journal goes there at its end: a killed driver has done all of it or nothing."""

    @wraps(method)
    def wrapped(search: OptunaSearch, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with together(search._trials.storage):
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
        self._trials = Trials(search, storage, f"{study_name}/{search.label}", accuracy_floor=accuracy_floor)
        self._first = FirstPoints(self._trials, published=published, warm=warm)
        self.target, self.exhausted = target, False
        self.origins: dict[str, str] = {}
        self._used: set[str] = set()
        self._next = 0
        self._by_settings: dict[str, str] = {}
        self.sampler, self.seed, self.startup_trials, self.history = sampler, seed, startup_trials, history
        self.startup = startup
        self.study.sampler = self._make_sampler(sampler, len(self.study.get_trials(deepcopy=False)))

    @property
    def search(self) -> Search:
        """What is searched."""
        return self._trials.search

    @property
    def study(self) -> Study:
        """Optuna's study."""
        return self._trials.study

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
        self._trials.drop(dropped)
        for finished_id, remark in remarks.items():
            self._trials.note(finished_id, remark)
        stored = self.study.get_trials(deepcopy=False)
        self.origins |= {
            t.user_attrs["id"]: t.user_attrs[WARM_START]
            for t in stored
            if WARM_START in t.user_attrs and "id" in t.user_attrs
        }
        if len(stored) < len(started):  # a storage made anew
            known = self._first.origins()
            decided = {trial_id: fingerprint(self.search.decided(settings)) for trial_id, settings in started.items()}
            self.origins |= {trial_id: known[one] for trial_id, one in decided.items() if one in known}
        unfinished = bring_up_to_ledger(self._trials, stored, finished, started, remarks)
        for trial_id in finished:
            self._by_settings.setdefault(fingerprint(self.search.decided(started[trial_id])), trial_id)
        for trial_id, settings in unfinished.items():
            self._by_settings.setdefault(fingerprint(settings), trial_id)
        self._used = {*finished, *unfinished}
        if len(stored) < len(self._used):  # a storage made anew: its number of trials tells nothing
            self.study.sampler = self._make_sampler(self.sampler, len(self._used))
        waiting = any(trial.state == TrialState.WAITING for trial in stored)
        self._first.enqueue(self._by_settings, waiting=waiting)
        return sorted(unfinished.items())

    def replan(self, search: Search, target: int) -> None:
        """Go on with what became of `search`: other cells, or the detector that was chosen; same label and space."""
        self._trials.search, self.target = search, target
        self._first.enqueue_tuned(self._by_settings)

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
        return len(self._trials.told)

    @_in_one_piece
    def ask(self, fits: Callable[[Mapping[str, Any]], bool] = _any_settings) -> tuple[str, dict[str, Any]] | None:
        """The next setting and its id; None when enough were asked, the space holds no new one, or none ``fits``.

        A suggestion that was evaluated before is told its known values at once and not counted. One that does not fit
        is left out (Optuna: failed, user attribute ``left_out``); after `MOST_REFUSALS` of them there is none.

        Args:
            fits: whether settings may run now, under a budget for one.
        """
        own = self.study.sampler
        try:
            return self._ask(fits)
        finally:
            self.study.sampler = own

    def _ask(self, fits: Callable[[Mapping[str, Any]], bool]) -> tuple[str, dict[str, Any]] | None:
        repeats, refusals, refused = 0, 0, set[str]()
        while self.asked < self.target and not self.exhausted and refusals < MOST_REFUSALS:
            trial = self._trials.ask()
            settings = self._trials.settings_of(trial)
            known = self._by_settings.get(fingerprint(settings))
            if known is None and not fits(settings):
                refusals += 1
                refused.add(fingerprint(settings))
                self._trials.leave_out(trial)
                continue
            if known is None:
                return self._begun(trial, settings), settings
            self._trials.repeat(trial, known)
            repeats += 1
            if repeats >= MOST_REPEATS and (choices := grid(self.search)):
                unseen = unseen_params(self.search, choices, {*self._by_settings, *refused}, len(self._used))
                if unseen is None:
                    self.exhausted = not refused
                    break
                self.study.enqueue_trial(unseen)
            elif repeats == MOST_REPEATS:
                self.study.sampler = self._make_sampler("random", trial.number)
        return None

    def _begun(self, trial: Trial, settings: Mapping[str, Any]) -> str:
        """The id of a new setting, which is to be measured."""
        trial_id = self._new_id()
        self._trials.begin(trial, trial_id)
        self._by_settings[fingerprint(settings)] = trial_id
        self._used.add(trial_id)
        if (origin := trial.user_attrs.get(WARM_START)) is not None:
            self.origins[trial_id] = origin
        return trial_id

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
        self._trials.tell(trial_id, values, remarks)

    def drop(self, trial_id: str, remarks: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Finish a setting that was dropped in a race: Optuna's state ``PRUNED``, without values.

        What it would have come to was not measured, and a mean over some of its cells is no mean over all. Of such a
        trial TPE takes its parameters alone, among those that are not worth repeating; NSGA-II and GP learn nothing.
        """
        self._trials.drop([trial_id])
        self.tell(trial_id, None, remarks)

    def abandon(self) -> None:
        """End the trials that were asked and will never be run."""
        self._trials.abandon()

    def _make_sampler(self, name: str, count: int) -> BaseSampler:
        seed = derive_seed(self.seed, "sampler", self.search.label, count)
        conditions = bool(self.search.space.conditions)
        made = make_sampler(
            name, seed=seed, startup_trials=self.startup_trials, history=self.history, conditions=conditions
        )
        if self.startup == "random" or name != self.sampler:
            return made
        return QuasiRandomStart(made, seed=seed % 2**32, startup_trials=self.startup_trials)

    def _new_id(self) -> str:
        while (trial_id := self.search.trial_id(self._next)) in self._used:
            self._next += 1
        return trial_id
