"""Every registered sampler under the shipped suite, and wrong ones that it must catch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler

from superft.testing import sampler_checks
from superft.testing.sampler_checks import Subject
from superft.testing.samplers import CHECKS
from tests.contracts.wrong import complaint, named

Check = Callable[[Subject], None]


subject_of = functools.cache(Subject)  # one for all tests of a sampler: a search may serve several


@pytest.mark.parametrize("name", sampler_checks.names())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sampler(name: str, check: Check) -> None:
    check(subject_of(name))


@dataclass
class Made(Subject):
    """A sampler that is made by a function of its seed rather than by its name."""

    maker: Callable[[int], BaseSampler] = lambda seed: optuna.samplers.RandomSampler(seed=seed)

    def make(self, seed: int) -> BaseSampler:
        return self.maker(seed)


class ByHash(optuna.samplers.RandomSampler):
    """Depends on the hash of a text, which differs from process to process."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=hash(f"seed {seed}") % 2**32)


class Stuck(optuna.samplers.RandomSampler):
    """Proposes the same setting for ever."""

    def sample_independent(self, study: Any, trial: Any, name: str, item: BaseDistribution) -> Any:
        return item.choices[0] if isinstance(item, CategoricalDistribution) else item.low  # type: ignore[attr-defined]


WRONG: dict[str, tuple[Callable[[int], BaseSampler], str, str]] = {
    "one objective": (
        lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=2),
        "two_objectives_are_searched",
        "does not search two objectives",
    ),
    "stuck": (lambda _: Stuck(), "start_up_trials_differ_from_each_other", "are not all different"),
    "no seed": (
        lambda _: optuna.samplers.RandomSampler(),
        "same_seed_gives_the_same_suggestions",
        "two searches of one seed differ",
    ),
    "one seed": (
        lambda _: optuna.samplers.RandomSampler(seed=0),
        "same_seed_gives_the_same_suggestions",
        "the seed changes nothing",
    ),
    "by hash": (ByHash, "a_fresh_process_with_other_string_hashes_agrees", "proposes other settings"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_sampler_is_caught_and_what_is_wrong_is_named(wrong: str) -> None:
    maker, check, message = WRONG[wrong]
    # The fresh process makes the sampler called random, as this process does with another hash.
    assert message in complaint(named(CHECKS, check), Made("random", maker=maker))
