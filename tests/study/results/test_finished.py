"""A search is unfinished only where the ledger cannot show that it has ended."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import space as search_spaces
from study.record.columns import to_frame
from study.results.finished import not_begun, space_size, unfinished_searches
from tests.study.rows import made_up_study, point

PLACE = ("digits", "preact_resnet18", "badnets", "super_ft")


def _small_space(monkeypatch: pytest.MonkeyPatch, **distributions: Any) -> None:
    space = search_spaces.Space(distributions, dict.fromkeys(distributions, None))
    monkeypatch.setattr(search_spaces, "get_space", lambda defense, variant="default", dataset=None: space)


def test_a_search_lacks_what_was_asked_for() -> None:
    rows = to_frame([point(i, 0.1, 0.9) for i in range(3)])
    assert unfinished_searches(rows, {"trials": 12}) == {PLACE: (3, 12)}
    assert unfinished_searches(rows, {"trials": 3}) == {}
    assert unfinished_searches(rows, {}) == {}


def test_a_spent_budget_ends_a_search() -> None:
    rows = to_frame([point(i, 0.1, 0.9) for i in range(3)])  # 50.91 E each
    assert unfinished_searches(rows, {"trials": 12, "budget_epochs": 150}) == {}
    assert unfinished_searches(rows, {"trials": 12, "budget_epochs": 160}) == {PLACE: (3, 12)}


def test_a_small_space_that_is_used_up_ends_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    _small_space(monkeypatch, layer=CategoricalDistribution(["a", "b"]), rounds=IntDistribution(1, 2))
    rows = [point(i, 0.1, 0.9) for i in range(4)]
    assert unfinished_searches(to_frame(rows), {"trials": 12}) == {}
    assert unfinished_searches(to_frame(rows[:3]), {"trials": 12}) == {PLACE: (3, 12)}


def test_a_search_over_all_attacks_is_one_search() -> None:
    frame = to_frame(made_up_study(trials=5, per="all"))
    (key,) = unfinished_searches(frame, {"trials": 12})
    assert key[2:] == ("all", "super_ft")


def test_the_size_of_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    assert space_size("super_ft", {}) == math.inf
    assert space_size("no such defense", {}) == math.inf
    _small_space(monkeypatch, a=CategoricalDistribution([1, 1.0, 2]), b=FloatDistribution(0.0, 1.0, step=0.5))
    assert space_size("super_ft", {}) == 2 * 3  # 1 and 1.0 are one setting
    _small_space(monkeypatch, a=IntDistribution(1, 10**9))
    assert space_size("super_ft", {}) == math.inf


def test_searches_without_a_row_are_told_from_the_spec() -> None:
    frame = to_frame([point(0, 0.1, 0.9)])
    spec = {"attacks": ["badnets", "blended"], "defenses": ["super_ft"]}
    assert not_begun(frame, spec) == [("blended", "super_ft")]
    assert not_begun(frame, {}) == []
