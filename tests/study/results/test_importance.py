"""Parameter importance says what mattered, and says so when it cannot know."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.conditions import OnlyIf
from search_spaces.space import Space
from study.record.columns import to_frame
from study.results.importance import LEAST_RESAMPLED, MOST_RESAMPLED, _domination_rank, importance
from study.results.pareto import non_dominated_indices
from study.results.settings import candidates
from tests.study.rows import made_up_study, point


def _settings(n: int) -> pd.DataFrame:
    """ASR follows ``strong`` alone; accuracy follows ``weak`` alone."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n):
        strong, weak = float(10 ** rng.uniform(-3, 0)), float(rng.uniform(0, 1))
        asr, accuracy = 1.0 + np.log10(strong) / 3 - 0.5, 0.9 + 0.1 * weak
        rows.append(point(number, max(float(asr), 0.0), accuracy, **{"param.strong": strong, "param.weak": weak}))
    return candidates(to_frame(rows))


def test_the_setting_that_moves_an_objective_has_its_importance() -> None:
    found = importance(_settings(120))
    assert found.shares["asr"]["strong"] > 0.9
    assert found.shares["clean_accuracy"]["weak"] > 0.9
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in found.shares.values())
    assert set(found.shares) == {"asr", "clean_accuracy", "front"}
    assert found.notes == ()


def test_a_collapsed_models_asr_explains_nothing() -> None:
    """A parameter ruins the model at its upper half, where ASR is 0 by accident; another moves the ASR of the rest."""
    rng, rows = np.random.default_rng(0), []
    for number in range(120):
        ruin, strong = float(rng.uniform()), float(rng.uniform())
        collapsed = ruin > 0.5
        asr, accuracy = (0.0, 0.1) if collapsed else (0.8 * strong, 0.95)
        params = {"param.ruin": ruin, "param.strong": strong}
        rows.append(point(number, asr, accuracy, collapsed=collapsed, **params))
    settings = candidates(to_frame(rows))
    found = importance(settings)
    assert found.shares["asr"]["strong"] > 0.9  # with the ruined ones as measured, `ruin` would have half
    assert found.shares["front"]["ruin"] > 0.1
    assert f"{int(settings['collapsed'].sum())} settings collapsed and are left out" in " ".join(found.notes)
    assert importance(settings.copy()).shares  # whatever blocks pandas keeps the columns in


def test_collapsed_models_are_not_what_reaches_the_front() -> None:
    """Half of the trials collapse at ASR 0: were that the front, ``ruin`` would decide who reaches it."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        ruin, fine = rng.uniform(0, 1, size=2)
        place = (0.0, 0.1, True) if ruin > 0.5 else (0.5 - 0.4 * fine, 0.9, False)
        asr, accuracy, collapsed = place
        settings = {"param.ruin": float(ruin), "param.fine": float(fine)}
        rows.append(point(number, float(asr), accuracy, collapsed=collapsed, **settings))
    shares = importance(candidates(to_frame(rows))).shares["front"]
    assert shares["fine"] > shares["ruin"]


def test_few_trials_are_computed_but_called_a_hint() -> None:
    found = importance(_settings(20))
    assert found.shares
    assert any("Only 20 settings" in note for note in found.notes)


def test_the_same_rows_give_the_same_importance() -> None:
    settings = candidates(to_frame(made_up_study(attacks=("badnets",), trials=15)))
    assert importance(settings) == importance(settings)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_too_few_trials_are_skipped_with_a_sentence(n: int) -> None:
    found = importance(_settings(10).iloc[:n])
    assert found.shares == {}
    assert "at least 4" in found.notes[0]


def test_settings_that_never_changed_are_skipped_with_a_sentence() -> None:
    rows = [point(i, 0.1 * i, 0.9, **{"param.lr": 0.1}) for i in range(6)]
    found = importance(candidates(to_frame(rows)))
    assert found.shares == {}
    assert "more than one value" in found.notes[0]


def test_an_objective_that_never_changed_is_named() -> None:
    rows = [point(i, 0.0, 0.9 + 0.01 * i, **{"param.lr": 0.1 * (i + 1)}) for i in range(6)]
    found = importance(candidates(to_frame(rows)))
    assert "asr" not in found.shares
    assert any("equal in ASR" in note for note in found.notes)


def test_settings_that_only_some_trials_have_are_left_out_by_name() -> None:
    rows = [point(i, 0.1 * i, 0.9, **{"param.lr": 0.1 * (i + 1)}) for i in range(6)]
    rows[0]["param.lr_max3"] = 0.5
    rows[1]["param.shape"] = "cosine"
    found = importance(candidates(to_frame(rows)))
    assert found.shares["asr"] == {"lr": pytest.approx(1.0)}
    assert "lr_max3, shape" in found.notes[0]


def test_words_and_switches_count_as_categories() -> None:
    settings = {"param.shape": ("linear", "cosine"), "param.nesterov": (True, False)}
    rows = [
        point(
            i,
            0.1 + 0.5 * (i % 2),
            0.9,
            **{name: values[(i // k) % 2] for k, (name, values) in enumerate(settings.items(), 1)},
        )
        for i in range(24)
    ]
    assert importance(candidates(to_frame(rows))).shares["asr"]["shape"] > 0.9


@pytest.mark.parametrize("grid", [5, 1000])
def test_ranks_found_in_one_pass_are_those_of_taking_front_after_front_away(grid: int) -> None:
    """On a coarse grid many points are equal or level in one value."""
    points = np.random.default_rng(0).integers(0, grid, (200, 2)) / grid
    expected, left, rank = np.full(len(points), -1.0), np.arange(len(points)), 0
    while len(left):
        front = {tuple(points[left[index]]) for index in non_dominated_indices(points[left])}
        layer = np.array([tuple(points[index]) in front for index in left])
        expected[left[layer]] = rank
        left, rank = left[~layer], rank + 1
    assert rank > 3
    assert _domination_rank(points).tolist() == expected.tolist()


def test_intervals_hold_the_share_and_a_parameter_that_does_nothing_is_not_told_from_chance() -> None:
    found = importance(_settings(40))
    assert found.intervals.keys() == {"asr", "clean_accuracy", "front"}
    low, high = found.intervals["asr"]["strong"]
    assert low <= found.shares["asr"]["strong"] <= high
    assert 0.5 < low < high <= 1.0
    assert found.told["asr"] == ("strong",)
    assert found.told["clean_accuracy"] == ("weak",)


@pytest.mark.parametrize("n", [LEAST_RESAMPLED - 1, MOST_RESAMPLED + 1])
def test_too_few_and_very_many_settings_have_no_intervals(n: int) -> None:
    found = importance(_settings(n))
    assert found.shares
    assert found.intervals == found.told == {}


def test_where_nothing_moves_an_objective_nothing_is_told_from_chance() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(40):
        settings = {f"param.{name}": float(rng.uniform()) for name in "abcd"}
        rows.append(point(number, float(rng.uniform()), float(rng.uniform()), **settings))
    told = importance(candidates(to_frame(rows))).told
    assert sum(map(len, told.values())) <= 1


def _conditional(n: int) -> tuple[pd.DataFrame, Space]:
    """ASR follows the way alone; on the way of x clean accuracy follows x, and y moves nothing at all."""
    space = Space(
        {
            "way": CategoricalDistribution(["x", "y"]),
            "x": FloatDistribution(0.0, 1.0),
            "y": FloatDistribution(0.0, 1.0),
            "clip": CategoricalDistribution([None, 1.0]),
        },
        {"way": "x", "x": 0.5, "clip": None},
        to_params=lambda settings: {"clip": None, **settings},
        conditions={"x": (OnlyIf("way", ("x",)),), "y": (OnlyIf("way", ("y",)),)},
    )
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n):
        way, own, noise = str(rng.choice(["x", "y"])), float(rng.uniform()), float(rng.uniform())
        asr = 0.2 + 0.6 * (way == "x") + 0.01 * noise
        accuracy = 0.8 + 0.1 * own if way == "x" else 0.85 + 0.001 * noise
        clip = None if rng.uniform() < 0.5 else 1.0
        rows.append(point(number, asr, accuracy, **{"param.way": way, f"param.{way}": own, "param.clip": clip}))
    return candidates(to_frame(rows)), space


def test_a_parameter_that_only_some_settings_have_is_judged_among_those() -> None:
    settings, space = _conditional(60)
    found = importance(settings, space)
    assert found.shares["asr"].keys() == {"way", "clip"}, "None is a choice as any other"
    assert found.shares["asr"]["way"] > 0.9
    assert found.told["asr"] == ("way",)
    assert found.branches.keys() == {"x", "y"}
    x, y = found.branches["x"], found.branches["y"]
    assert (x.trials, y.trials) == tuple(int((settings["param.way"] == way).sum()) for way in "xy")
    assert x.shares["clean_accuracy"] > 0.9
    assert "clean_accuracy" in x.told
    assert not y.told
    assert not any("Left out" in note for note in found.notes)
