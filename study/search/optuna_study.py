"""The Optuna study of one search: made or opened, and refused where it is another one."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from types import MappingProxyType

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection

from search_spaces.conditions import Conditions
from search_spaces.space import Space
from study.spec.yaml_io import SpecError

METRICS = ("asr", "clean_accuracy")
DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)


def space_hash(distributions: Mapping[str, BaseDistribution], conditions: Conditions = MappingProxyType({})) -> str:
    """Digest of a search space; a study continued under another one would mix incomparable trials."""
    text = json.dumps({name: distribution_to_json(item) for name, item in distributions.items()}, sort_keys=True)
    if conditions:
        told = {name: [(one.parameter, one.among) for one in needed] for name, needed in conditions.items()}
        text += json.dumps(told, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_study(storage: BaseStorage, name: str, space: Space) -> Study:
    """The study of that name, new or with the trials that the storage holds.

    Raises:
        SpecError: the storage holds a study of that name with other directions or another space.
    """
    known = name in optuna.study.get_all_study_names(storage)
    if known:  # opened without a write: looking at a finished study changes nothing
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        study = optuna.create_study(study_name=name, storage=storage, directions=list(DIRECTIONS))
    of_space = space_hash(space.distributions, space.conditions)
    # Without trials and space: new, or left by a driver that was killed right here.
    if not known or ("space" not in study.user_attrs and not study.get_trials(deepcopy=False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(METRICS))  # labels in optuna-dashboard
        study.set_user_attr("space", of_space)
    if list(study.directions) != list(DIRECTIONS):
        raise SpecError(f"search.storage holds a study {name!r} with other directions; choose another study name")
    if study.user_attrs.get("space") != of_space:
        raise SpecError(f"search.storage holds a study {name!r} with another search space; choose another study name")
    return study
