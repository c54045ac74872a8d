"""What a front has in common is said with numbers, and only where chance would not bring it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from search_spaces.space import get_space
from study.record.columns import to_frame
from study.results.common import CHANCE, _choices, _numbers, alike, common_text
from study.results.settings import candidates
from tests.study.rows import point


def searched(n: int = 40) -> pd.DataFrame:
    """Settings whose ``key`` and ``kind`` are drawn at random, with trial ids by number."""
    rng = np.random.default_rng(0)
    rows = [
        point(
            number,
            0.5,
            0.9,
            **{
                "param.key": number / n,
                "param.other": float(rng.uniform()),
                "param.kind": "good" if number % 4 == 0 else "bad",
            },
        )
        for number in range(n)
    ]
    return candidates(to_frame(rows))


def test_a_front_that_lies_close_together_is_told_with_its_range_and_what_was_tried() -> None:
    table = searched()
    text = common_text(table, table["trial"].iloc[10:15].tolist())
    assert text == "What the 5 settings on the front have in common: key 0.25 to 0.35 (tried: 0 to 0.975)."


def test_a_choice_that_the_whole_front_made_is_told_with_how_often_it_was_tried() -> None:
    table = searched()
    text = common_text(table, table["trial"].iloc[[0, 8, 16, 28, 36]].tolist())
    assert "kind good in 5 of 5 (tried: 10 of 40)" in text
    assert "key" not in text


def test_a_front_of_random_settings_has_nothing_in_common() -> None:
    table = searched()
    text = common_text(table, table["trial"].iloc[[1, 9, 18, 27, 39]].tolist())
    assert text.startswith("The 5 settings on the front have nothing in common that 5 random ones of the 40 would not")


def test_two_settings_are_too_few_to_say_anything() -> None:
    table = searched()
    assert common_text(table, table["trial"].iloc[:2].tolist()) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 2), (1, 4), (3, 7)])
def test_the_chance_of_a_narrow_front_is_that_of_all_subsets(low: int, high: int) -> None:
    """Counted by hand over all subsets of 3 of 8."""
    values, k = list(range(8)), 3
    front = {low, (low + high) // 2, high}
    assert len(front) == k
    subsets = list(itertools.combinations(values, k))
    narrow = sum(max(one) - min(one) <= high - low for one in subsets)
    found = _numbers("x", values, [value in front for value in values])
    assert found.chance == pytest.approx(narrow / len(subsets))


def test_the_chance_of_a_frequent_choice_is_that_of_all_subsets() -> None:
    values, k = ["a"] * 3 + ["b"] * 5, 3
    subsets = list(itertools.combinations(range(8), k))
    two_of_a = sum(sum(values[index] == "a" for index in one) >= 2 for one in subsets)
    found = _choices("x", values, [True, True, False, True, *[False] * 4])
    assert found.words == "x a in 2 of 3 (tried: 3 of 8)"
    assert found.chance == pytest.approx(min(1.0, 2 * two_of_a / len(subsets)))


def test_random_fronts_are_rarely_said_to_have_something_in_common() -> None:
    """The error rate over all parameters is at most CHANCE; 300 draws leave it within three standard deviations."""
    rng, table = np.random.default_rng(1), searched(60)
    picks = [table["trial"].iloc[rng.choice(60, 5, replace=False)].tolist() for _ in range(300)]
    wrong = sum(bool(alike(table, one)) for one in picks)
    assert wrong / 300 < CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / 300)


def test_parameters_of_a_conditional_space_are_compared_where_all_of_the_front_has_them() -> None:
    space = get_space("super_ft", "family")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        base = float(10 ** rng.uniform(-5.9, -2.1))
        shape = "constant" if number % 2 else "cosine"
        params = space.filled({"shape": shape, "phases": 1, "lr_base": base, "lr_max1": 0.01 + 0.01 * number})
        settings = {f"param.{key}": value for key, value in space.to_settings(params).items()}
        rows.append(point(number, 0.5, 0.9, **settings))
    table = candidates(to_frame(rows))
    names = [one.name for one in alike(table, table["trial"].iloc[[0, 2, 4, 6, 8, 10, 12]].tolist(), space)]
    assert "lr_max1" in names
    assert "shape" in names
    assert "iterations" not in names, "which is a setting, not a parameter"
    mixed = [one.name for one in alike(table, table["trial"].iloc[[0, 1, 2, 3, 4]].tolist(), space)]
    assert mixed == ["lr_max1"]
