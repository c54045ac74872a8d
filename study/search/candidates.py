"""Candidates of a defender who chooses without the true ASR: known ones first, then what a sampler proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import optuna

from search_spaces.space import get_space
from study.spec.samplers import make_sampler
from trainables.choice.base import Candidate

# Candidates that may be proposed before the first of them has its result. Results are told in the order of the
# proposals, each before a fixed proposal, so that it does not matter which is ready first: the same seed and the same
# results give the same candidates, also when a choice is continued.
AHEAD = 6


class Result(Protocol):
    """What a candidate came to."""

    @property
    def asr(self) -> float:
        """Of the planted triggers, in [0, 1]."""

    @property
    def accuracy(self) -> float:
        """Of validation images, in [0, 1]."""


class Candidates:
    """Proposes schedules of one defense, to remove planted triggers (least ASR) and to keep accuracy.

    Args:
        known: candidates to begin with, all of one defense; the longest of them is the longest that is proposed.
        published: of the same defense; it gives the settings that ``known`` leave open.
        count: how many there will be, >= 1.
        seed: of the sampler.
    """

    def __init__(self, known: Sequence[Candidate], published: Candidate, count: int, seed: int) -> None:
        self._known, self.count, self._defense = known[:count], count, published.defense
        space = get_space(self._defense)
        longest = {
            name: [item.low, max(int(one.settings[name]) for one in known)]
            for name, item in space.distributions.items()
            if isinstance(item, optuna.distributions.IntDistribution) and all(name in one.settings for one in known)
        }
        self._space = space.with_ranges(longest, "choose", published=False)
        sampler = make_sampler("tpe", seed=seed, startup_trials=len(known))
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # not a line for every study and trial
        self._study = optuna.create_study(sampler=sampler, directions=["minimize", "maximize"])
        for one in self._known:
            params = self._space.to_params({**self._space.paper, **published.settings, **one.settings})
            self._study.enqueue_trial({name: params[name] for name in self._space.distributions})
        self._asked: list[tuple[optuna.Trial, Candidate]] = []
        self._told = 0

    @property
    def proposed(self) -> tuple[Candidate, ...]:
        """All so far, in order; none twice."""
        return tuple(dict.fromkeys(candidate for _, candidate in self._asked))

    @property
    def left(self) -> int:
        """Proposals to come."""
        return self.count - len(self._asked)

    def next(self, results: Callable[[Candidate], Result | None]) -> Candidate | None:
        """The next candidate; None at the end, and while the result of an earlier one is wanted first.

        Args:
            results: what is known of a candidate so far.
        """
        if not self.left:
            return None
        while self._told <= len(self._asked) - AHEAD:
            trial, earlier = self._asked[self._told]
            found = results(earlier)
            if found is None:
                return None
            self._study.tell(trial, (found.asr, found.accuracy))
            self._told += 1
        trial = self._study.ask(dict(self._space.distributions))
        place = len(self._asked)
        if place < len(self._known):
            candidate = self._known[place]
        else:
            candidate = Candidate(self._defense, self._space.to_settings(dict(trial.params)))
        self._asked.append((trial, candidate))
        return candidate
