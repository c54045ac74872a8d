"""Curves, attainment, targets and tests of traces that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wilcoxon

from study.results.intervals import mean_interval
from study.simulate.clock import Trace
from study.simulate.summary import (
    attainment,
    common_epochs,
    first_reached,
    over_epochs,
    over_trials,
    paired,
    seeds_needed,
    to_target,
)


def trace(
    *values: float, epochs: tuple[float, ...] = (1.0, 3.0, 6.0), front: tuple[tuple[float, float], ...] = ()
) -> Trace:
    return Trace(list(values), [value / 2 for value in values], list(epochs), list(epochs), list(front))


TRACES = {
    "a": [
        {"x/d": trace(0.1, 0.5, 0.6), "y/d": trace(0.3, 0.3, 0.8)},
        {"x/d": trace(0.2, 0.2, 0.2), "y/d": trace(0.4, 0.4, 0.4)},
    ],
    "b": [{"x/d": trace(0.0, 0.1, 0.2, epochs=(2.0, 4.0, 5.0)), "y/d": trace(0.0, 0.1, 0.2)}] * 2,
}


def test_curves_are_means_over_the_searches_of_a_study() -> None:
    curves = over_trials(TRACES, "hypervolume")
    np.testing.assert_allclose(curves["a"], [[0.2, 0.4, 0.7], [0.3, 0.3, 0.3]])
    np.testing.assert_allclose(over_trials(TRACES, "corner")["b"], [[0.0, 0.05, 0.1]] * 2)


def test_a_search_without_new_settings_keeps_its_value() -> None:
    short = {"a": [{"x/d": trace(0.5, epochs=(1.0,)), "y/d": trace(0.1, 0.2, 0.3)}]}
    np.testing.assert_allclose(over_trials(short, "hypervolume")["a"], [[0.3, 0.35, 0.4]])


def test_over_E_a_search_has_what_it_had_found_by_then() -> None:
    at = common_epochs(TRACES)
    assert at[-1] == 5.0  # the first search to end
    curve = over_epochs(TRACES, "hypervolume", np.array([0.0, 0.9, 1.0, 3.5, 6.0]))["a"][0]
    np.testing.assert_allclose(curve, [0.0, 0.0, 0.2, 0.4, 0.7])


def test_a_band_holds_the_mean_and_narrows_with_the_seeds() -> None:
    draws = np.random.default_rng(1).normal(0.5, 0.1, size=(400, 1))
    few, many = mean_interval(draws[:10]), mean_interval(draws)
    for mean, low, high in (few, many):
        assert low[0] < mean[0] < high[0]
    assert many[2][0] - many[1][0] == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)  # that of a normal mean
    assert few[2][0] - few[1][0] > 3 * (many[2][0] - many[1][0])


def test_attainment_is_what_a_share_of_the_searches_reaches() -> None:
    fronts = [[(0.0, 0.9)], [(0.1, 0.8), (0.2, 0.95)], [(0.3, 0.7)], [(0.3, 0.6)]]
    surfaces = attainment(fronts, np.array([0.0, 0.1, 0.2, 0.3]))
    assert surfaces[0.25] == [0.9, 0.9, 0.95, 0.95]
    assert surfaces[0.5] == [None, 0.8, 0.9, 0.9]
    assert surfaces[0.75] == [None, None, None, 0.7]


def test_a_target_is_reached_at_its_first_setting_or_never() -> None:
    one = TRACES["a"][0]["x/d"]
    assert first_reached(one, "hypervolume", 0.5) == (2, 3.0)
    assert first_reached(one, "hypervolume", 0.61) is None
    found = to_target(TRACES["a"], "hypervolume", {"x/d": 0.5, "y/d": 0.4})
    assert found == {"reached": 0.75, "trials": 3, "epochs": 6.0}  # 2, 3, never, 1: the later of both in the middle
    assert to_target(TRACES["b"], "hypervolume", {"x/d": 0.9}) == {"reached": 0.0, "trials": None, "epochs": None}
    assert to_target(TRACES["a"], "hypervolume", {"x/d": 0.0, "y/d": 0.4}) == to_target(
        TRACES["a"], "hypervolume", {"y/d": 0.4}
    )
    assert to_target(TRACES["a"], "hypervolume", {"x/d": 0.0})["reached"] is None, "nothing to reach"


def test_pairs_are_tested_seed_by_seed_and_corrected_for_their_number() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.2, 12)  # seeds differ far more than samplers: only pairs can tell
    finals = {"a": base + 0.05 + rng.normal(0, 0.01, 12), "b": base, "c": base + rng.normal(0, 0.01, 12)}
    rows = {(row["first"], row["second"]): row for row in paired({"area": finals})["area"]}
    assert rows["a", "b"]["wins"] == 12
    assert rows["a", "b"]["p"] == pytest.approx(3 * wilcoxon(finals["a"] - finals["b"]).pvalue)
    assert rows["a", "b"]["p"] < 0.01 < 0.05 < rows["b", "c"]["p"]
    assert rows["a", "b"]["difference"] == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("tests", [1, 6])
def test_with_the_seeds_that_are_needed_and_no_fewer_a_difference_can_be_found(tests: int) -> None:
    needed = seeds_needed(tests)
    finals = {str(place): np.arange(1, needed + 1) * 0.01 * 4.0**place for place in range({1: 2, 6: 4}[tests])}
    rows, fewer = (
        paired({"area": {name: values[:count] for name, values in finals.items()}})["area"]
        for count in (needed, needed - 1)
    )
    assert len(rows) == tests
    assert min(row["p"] for row in rows) < 0.05 < min(row["p"] for row in fewer)


def test_tests_in_two_boxes_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    finals = {"a": rng.normal(0.5, 0.01, 12), "b": rng.normal(0.49, 0.01, 12)}
    (alone,), (first,) = paired({"area": finals})["area"], paired({"area": finals, "corner": finals})["area"]
    assert first["p"] == pytest.approx(2 * alone["p"])


def test_a_band_holds_the_mean_of_few_seeds_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.05, (3, 400))  # 400 studies of three seeds
    _, low, high = mean_interval(values)
    assert 0.92 <= np.mean((low <= 0.5) & (high >= 0.5)) <= 0.98
    assert [ends.tolist() for ends in mean_interval(np.array([[0.3]]))] == [[0.3], [0.0], [1.0]]


def test_equal_samplers_differ_in_nothing() -> None:
    (row,) = paired({"area": {"a": np.full(8, 0.3), "b": np.full(8, 0.3)}})["area"]
    assert (row["p"], row["wins"]) == (1.0, 0)
