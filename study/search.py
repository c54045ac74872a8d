"""Optuna ask/tell for one search: the published point first, nothing evaluated twice, no trial left running."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from study.plan import Search
from study.settings import SpecError
from trainables.seeding import derive_seed

Values = tuple[float, float]

METRICS = ("asr", "clean_accuracy")
DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
WORST = (1.0, 0.0)
# Consecutive suggestions of settings that are already known after which the space counts as searched through.
MOST_REPEATS = 50


def make_sampler(name: str, *, seed: int, startup_trials: int) -> BaseSampler:
    """A sampler by name: ``tpe`` (multivariate, constant liar), ``nsga2``, ``gp`` or ``random``."""
    seed %= 2**32
    match name:
        case "tpe":
            return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=startup_trials, seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=max(2, min(50, startup_trials * 2)), seed=seed)
        case "gp":
            return GPSampler(n_startup_trials=startup_trials, seed=seed)
        case "random":
            return RandomSampler(seed=seed)
        case _:
            raise SpecError(f"search.sampler: unknown sampler {name!r}")


def open_storage(storage: str, directory: Path) -> BaseStorage:
    """The journal file in ``directory``, or the database behind a URL.

    Raises:
        SpecError: the database cannot be reached.
    """
    if storage == "journal":
        return JournalStorage(JournalFileBackend(str(directory / "optuna.journal")))
    try:
        return RDBStorage(storage)
    except Exception as error:  # whatever the database's driver raises, it means the same here
        first = str(error).strip().splitlines()[0]
        raise SpecError(f"search.storage: cannot open {_without_password(storage)}: {first}") from error


def space_hash(distributions: Mapping[str, BaseDistribution]) -> str:
    """Digest of a search space; a study continued under another one would mix incomparable trials."""
    text = json.dumps({name: distribution_to_json(item) for name, item in distributions.items()}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class OptunaSearch:
    """One `Search` of the plan as an Optuna study.

    Args:
        search: what is searched.
        storage: shared by all searches of the study.
        study_name: name of the whole study; Optuna's is ``study_name/label``.
        sampler, seed, startup_trials: see `make_sampler`; the seed moves on with the number of existing trials, so
            that a restarted sampler does not draw its start-up points again.
        target: settings to be finished.

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
    ) -> None:
        self.search, self.target = search, target
        self.exhausted = False
        self._used: set[str] = set()
        self._open: dict[str, int] = {}
        self._told: dict[str, Values | None] = {}
        self._by_settings: dict[str, str] = {}
        name = f"{study_name}/{search.label}"
        known = optuna.study.get_all_study_names(storage)
        self.study = optuna.create_study(
            study_name=name, storage=storage, directions=list(DIRECTIONS), load_if_exists=True
        )
        fingerprint = space_hash(search.space.distributions)
        if name not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(list(METRICS))  # labels in optuna-dashboard
            self.study.set_user_attr("space", fingerprint)
        if list(self.study.directions) != list(DIRECTIONS):
            raise SpecError(f"search.storage holds a study {name!r} with other directions; choose another study name")
        if self.study.user_attrs.get("space") != fingerprint:
            raise SpecError(
                f"search.storage holds a study {name!r} with another search space; choose another study name"
            )
        existing = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = make_sampler(
            sampler, seed=derive_seed(seed, "sampler", search.label, existing), startup_trials=startup_trials
        )

    def resume(
        self, finished: Mapping[str, Values | None], started: Mapping[str, Mapping[str, Any]]
    ) -> list[tuple[str, dict[str, Any]]]:
        """Bring Optuna up to the ledger, and return the settings that were asked but not finished.

        Args:
            finished: what the ledger says of each trial id with all its cells measured (None: all of them failed).
            started: settings of each trial id that has any row.

        Returns:
            (trial id, settings) to be run again, under the Optuna trials they already have.
        """
        trials = self.study.get_trials(deepcopy=False)
        present = {trial.user_attrs["id"] for trial in trials if "id" in trial.user_attrs}
        unfinished: dict[str, dict[str, Any]] = {}
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            trial_id = trial.user_attrs.get("id")
            if trial_id is None or set(trial.params) != set(self.search.space.distributions):
                self.study.tell(trial.number, state=TrialState.FAIL)  # the driver was killed while asking it
                continue
            self._open[trial_id] = trial.number
            if trial_id in finished:
                self.tell(trial_id, finished[trial_id])
            else:
                unfinished[trial_id] = self.search.settings(trial.params)
        for trial_id in sorted(started):
            if trial_id in present:
                continue
            # The storage was deleted or is another one: the ledger is the truth.
            if trial_id in finished:
                self._restore(trial_id, finished[trial_id], started[trial_id])
            else:
                self.study.enqueue_trial(self.search.space.to_params(started[trial_id]))
                trial_again = self.study.ask(dict(self.search.space.distributions))
                trial_again.set_user_attr("id", trial_id)
                self._open[trial_id] = trial_again.number
                unfinished[trial_id] = self._own(started[trial_id])
        for trial_id, values in finished.items():
            self._told[trial_id] = values
            self._by_settings.setdefault(_fingerprint(self._own(started[trial_id])), trial_id)
        for trial_id, settings in unfinished.items():
            self._by_settings.setdefault(_fingerprint(settings), trial_id)
        self._used = {*finished, *unfinished}
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and _fingerprint(self._paper_settings()) not in self._by_settings:
            self.study.enqueue_trial(self.search.paper_params())
        return sorted(unfinished.items())

    @property
    def asked(self) -> int:
        """Settings asked so far, finished or not."""
        return len(self._used)

    def ask(self) -> tuple[str, dict[str, Any]] | None:
        """The next setting and its id; None when enough were asked, or the space holds no new one.

        A suggestion that was evaluated before is told its known values at once and not counted.
        """
        repeats = 0
        while self.asked < self.target and not self.exhausted:
            trial = self.study.ask(dict(self.search.space.distributions))
            settings = self.search.settings(trial.params)
            known = self._by_settings.get(_fingerprint(settings))
            if known is None:
                trial_id = next(name for name in map(self.search.trial_id, itertools.count()) if name not in self._used)
                trial.set_user_attr("id", trial_id)
                self._open[trial_id] = trial.number
                self._by_settings[_fingerprint(settings)] = trial_id
                self._used.add(trial_id)
                return trial_id, settings
            trial.set_user_attr("repeats", known)
            self._finish(trial.number, self._told.get(known))
            repeats += 1
            self.exhausted = repeats >= MOST_REPEATS
        return None

    def tell(self, trial_id: str, values: Values | None) -> None:
        """Finish a setting with (ASR, clean accuracy); None, where nothing could be measured, ends it as failed.

        Values that are not finite are told as the worst point: a failure would teach the sampler nothing.
        """
        if values is not None and not all(map(math.isfinite, values)):
            values = WORST
        self._told[trial_id] = values
        self._finish(self._open.pop(trial_id), values)

    def _finish(self, number: int, values: Values | None) -> None:
        if values is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, values)

    def _restore(self, trial_id: str, values: Values | None, settings: Mapping[str, Any]) -> None:
        params = self.search.space.to_params(settings)
        distributions = dict(self.search.space.distributions)
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if values is None else TrialState.COMPLETE,
                params={name: params[name] for name in distributions},
                distributions=distributions,
                values=None if values is None else list(values),
                user_attrs={"id": trial_id},
            )
        )

    def _paper_settings(self) -> dict[str, Any]:
        return self.search.settings(self.search.paper_params())

    def _own(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A ledger row's settings, cut to those that this search decides or fixes."""
        return {key: settings[key] for key in self._paper_settings() if key in settings}


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
