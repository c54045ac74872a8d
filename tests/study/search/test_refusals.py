"""Settings that a budget has no room for: what else there is gets its turn, and the sampler stays the one it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.storages import InMemoryStorage

from search_spaces.space import Space
from tests.study.search.test_optuna_search import LINE, make

TWENTY = Space({"k": IntDistribution(1, 20)}, {"k": 1})


class Stuck(optuna.samplers.RandomSampler):
    """Proposes the same again and again."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return {"k": 1, "x": 0.5, "y": 0.25}[name]


@pytest.mark.parametrize("sampler", [Stuck(), optuna.samplers.RandomSampler(seed=0)])
def test_all_settings_of_a_small_space_that_fit_are_asked(sampler: optuna.samplers.BaseSampler) -> None:
    search, asked = make(InMemoryStorage(), TWENTY, target=20), list[int]()
    search.resume({}, {})
    search.study.sampler = sampler
    while (one := search.ask(lambda settings: settings["k"] <= 10)) is not None:
        asked.append(one[1]["k"])
        search.tell(one[0], (0.5, 0.5))
    assert sorted(asked) == list(range(1, 11))
    assert not search.exhausted, "what did not fit now may fit later"


def test_after_an_ask_without_an_answer_the_sampler_is_the_one_it_was() -> None:
    search = make(InMemoryStorage(), LINE, target=50)
    search.resume({}, {})
    first = search.ask()
    assert first is not None
    search.tell(first[0], (0.5, 0.5))
    search.study.sampler = stuck = Stuck()

    def nothing(_: Mapping[str, Any]) -> bool:
        return False

    assert search.ask(nothing) is None, "ten repeats, then random settings that are refused"
    assert search.study.sampler is stuck
