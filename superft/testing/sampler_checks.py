"""What every sampler must hold: it proposes settings of two-objective searches, and the same ones for the same seed.

Every check is a plain function of a `Subject` and fails by ``AssertionError``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection

from study.spec.samplers import SAMPLERS, make_sampler

# One parameter of every kind that a search space may have.
SPACE: Mapping[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 0.9),
    "steps": IntDistribution(1, 500, log=True),
    "layers": IntDistribution(1, 4),
    "scope": CategoricalDistribution(["all", "classifier", "bn_only"]),
}
DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)  # ASR, clean accuracy
STARTUP = 5
TRIALS = 12
# Prints the trials of a search in a fresh process; sys.argv: modules to import, name, seed.
PROGRAM = """
import json, sys
from trainables.plugins.load import load
load(json.loads(sys.argv[1]))
from superft.testing.sampler_checks import Subject
print(json.dumps([hash("superft"), Subject(sys.argv[2]).search(int(sys.argv[3]))]))
"""


def names() -> list[str]:
    """All samplers that a spec may name, sorted."""
    return SAMPLERS.names()


@dataclass
class Subject:
    """A registered sampler.

    Args:
        name: as ``search.sampler`` names it.
        modules: what a fresh process imports so that the sampler is registered there.
    """

    name: str
    modules: tuple[str, ...] = ()

    def make(self, seed: int) -> BaseSampler:
        return make_sampler(self.name, seed=seed, startup_trials=STARTUP)

    def search(self, seed: int, trials: int = TRIALS) -> list[dict[str, Any]]:
        """Parameters of ``trials`` trials of a search with two objectives, two of them always running."""
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=self.make(seed), directions=DIRECTIONS)
            for _ in range(trials // 2):
                for trial in [study.ask(dict(SPACE)), study.ask(dict(SPACE))]:
                    study.tell(trial, values(trial.params))
        finally:
            optuna.logging.set_verbosity(level)
        return [trial.params for trial in study.get_trials(deepcopy=False)]

    @cached_property
    def searched(self) -> list[dict[str, Any]]:
        """What one search proposes, for all checks that need no search of their own."""
        return self.search(3)

    @cached_property
    def searched_long(self) -> list[dict[str, Any]]:
        """Likewise until long after the start-up trials."""
        return self.search(1, 2 * TRIALS)


def values(params: Mapping[str, Any]) -> tuple[float, float]:
    """Two objectives that want opposite things of the parameters, as ASR and clean accuracy do."""
    effort = params["lr"] ** 0.25 * params["steps"] / 500 + 0.1 * params["layers"]
    return 1.0 / (1.0 + effort), 1.0 / (1.0 + effort * params["momentum"])


def suggestions_lie_within_their_bounds(subject: Subject) -> None:
    for params in subject.searched_long:
        assert params.keys() == SPACE.keys()
        for name, value in params.items():
            item = SPACE[name]
            assert item._contains(item.to_internal_repr(value)), (
                f"sampler {subject.name}: {name}={value} is outside {item}"
            )


def two_objectives_are_searched(subject: Subject) -> None:
    """Asked until long after the start-up trials: a sampler of one objective fails at the first one behind them."""
    try:
        found = subject.searched_long
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"sampler {subject.name} does not search two objectives: {error}") from error
    assert len(found) == 2 * TRIALS
    assert len({json.dumps(params, sort_keys=True) for params in found}) > TRIALS, (
        f"sampler {subject.name} proposes the same settings again and again"
    )


def start_up_trials_differ_from_each_other(subject: Subject) -> None:
    """The first settings are spread over the space, before there is anything to learn from."""
    first = subject.search(2, STARTUP + 1)[:STARTUP]
    assert len({json.dumps(params, sort_keys=True) for params in first}) == STARTUP, (
        f"sampler {subject.name}: the first {STARTUP} settings are not all different"
    )


def same_seed_gives_the_same_suggestions(subject: Subject) -> None:
    assert subject.searched == subject.search(3), f"sampler {subject.name}: two searches of one seed differ"
    other = subject.search(4, STARTUP + 1)
    assert subject.searched[: len(other)] != other, f"sampler {subject.name}: the seed changes nothing"


def a_fresh_process_with_other_string_hashes_agrees(subject: Subject) -> None:
    """A search that goes on after a restart must not depend on the order of a set of names."""
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(subject.modules), subject.name, "3"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr
    hashed, found = json.loads(ran.stdout)
    assert hashed != hash("superft")
    assert found == subject.searched, (
        f"sampler {subject.name}: a fresh process with the same seed proposes other settings"
    )
