"""A space with conditions gives every point the parameters that it has; the family holds what it is named for."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import OnlyIf
from search_spaces.space import Space, _check, check_space, fingerprint, get_space
from study.spec.methods import is_published
from trainables.defenses.ft import FineTuning
from trainables.defenses.super_ft import SuperFineTuning
from trainables.registry import SettingError
from trainables.training.schedules import constant, cosine

CHAIN = Space(
    {
        "kind": CategoricalDistribution(["a", "b", "c"]),
        "deep": CategoricalDistribution([False, True]),
        "x": FloatDistribution(0.0, 1.0),
        "free": IntDistribution(1, 3),
    },
    {"kind": "a", "free": 2},
    conditions={"deep": (OnlyIf("kind", ("b", "c")),), "x": (OnlyIf("deep", (True,)),)},
)
IMAGES = 1000


def family(dataset: str | None = None) -> Space:
    return get_space("super_ft", "family", dataset)


def rates(settings: dict[str, Any]) -> list[float]:
    schedule = SuperFineTuning(**settings).schedule(IMAGES)
    return [schedule(step) for step in range(schedule.total_steps)]


def test_a_point_has_what_its_choices_bring_and_what_those_bring_in_turn() -> None:
    assert CHAIN.names_of({"kind": "a", "deep": True, "x": 0.5, "free": 1}) == ["kind", "free"]
    assert CHAIN.names_of({"kind": "b", "deep": False, "x": 0.5, "free": 1}) == ["kind", "deep", "free"]
    assert CHAIN.names_of({"kind": "c", "deep": True, "x": 0.5, "free": 1}) == ["kind", "deep", "x", "free"]


def test_of_a_point_that_is_known_in_part_the_next_parameter_is_named_too() -> None:
    """A driver that was killed while it asked leaves such a trial: it must not look complete."""
    assert CHAIN.names_of({"kind": "b"}) == ["kind", "deep", "free"]
    assert CHAIN.names_of({}) == ["kind", "free"]


def test_a_walk_asks_for_nothing_that_the_point_does_not_have() -> None:
    asked = []

    def value(name: str, item: Any) -> Any:
        asked.append(name)
        return {"kind": "b", "deep": False, "free": 3}[name]

    assert CHAIN.walk(value) == {"kind": "b", "deep": False, "free": 3}
    assert asked == ["kind", "deep", "free"]


def test_a_space_is_counted_by_different_settings_without_what_they_do_not_have() -> None:
    small = dataclasses.replace(CHAIN, distributions={**CHAIN.distributions, "x": IntDistribution(1, 2)})
    # a: 3; b and c: not deep 3, deep 2 * 3.
    assert small.size == 3 + 2 * (3 + 6)


def test_regimes_show_every_parameter_and_every_setting() -> None:
    names = {name for point in family().regimes() for name in point}
    assert names == set(family().distributions)
    assert {"lr_max3", "cycles3", "cooldown_steps"} <= set(family().decides)
    assert CHAIN.decides == ("kind", "free", "deep", "x")
    assert set(get_space("super_ft").decides) == set(get_space("super_ft").distributions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"y": (OnlyIf("kind", ("a",)),)}}, "names 'y', which is not searched"),
        ({"conditions": {"kind": (OnlyIf("deep", (True,)),)}}, "kind depends on 'deep', which must stand before it"),
        ({"conditions": {"free": (OnlyIf("x", (0.5,)),)}}, "free depends on x, which must be a choice"),
        ({"detector": ("kind",)}, "one with conditions or starts has no detector"),
        ({"starts": {"other": {"kind": "b", "free": 1}}}, "the start 'other' has no deep"),
        ({"starts": {"other": {"kind": "a", "free": 7}}}, "the start 'other' is no point of it"),
    ],
)
def test_a_space_that_cannot_be_walked_is_refused(change: dict[str, Any], message: str) -> None:
    holder = SimpleNamespace(
        SPACE={"free": IntDistribution(1, 3)},
        PAPER={"free": 2},
        VARIANTS={"chain": dataclasses.replace(CHAIN, **change)},
    )
    with pytest.raises(SettingError, match=message):
        _check("toy", holder)


# -- the family ----------------------------------------------------------------------------------------------------


def test_the_published_schedule_is_a_point_of_the_family_and_still_called_published() -> None:
    settings = family().to_settings(family().paper_params())
    assert rates(settings) == rates({})
    assert dataclasses.asdict(SuperFineTuning(**settings)) == dataclasses.asdict(SuperFineTuning())
    assert is_published("super_ft", settings, "cifar10")
    assert not any(
        is_published("super_ft", family().to_settings(start), "cifar10") for start in family().starts.values()
    )


@pytest.mark.parametrize(("name", "schedule"), [("ft_cosine", cosine(0.1, 1000)), ("ft_constant", constant(0.1))])
def test_plain_fine_tuning_at_the_peak_is_a_point_of_the_family(name: str, schedule: Callable[[int], float]) -> None:
    """Rule 4 of the rules of comparison: at the steps and the peak of the published schedule."""
    settings = family().to_settings(family().starts[name])
    # The family's least base is 1e-6, where the cosine goes on to 0.
    assert rates(settings) == pytest.approx([schedule(step) for step in range(1000)], abs=1e-6)
    ours, theirs = SuperFineTuning(**settings), FineTuning(lr=0.1, steps=1000)
    for key in ("momentum", "weight_decay", "batch_size", "optimizer", "augment", "scope"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert (ours.momentum_mode, ours.grad_clip) == ("constant", None)


def test_the_one_cycle_policy_is_a_point_of_the_family() -> None:
    """One rise, one fall, momentum the other way round, a last part far below (Smith 2018)."""
    settings = family().to_settings(family().starts["one_cycle"])
    values, defense = rates(settings), SuperFineTuning(**settings)
    schedule = defense.schedule(IMAGES)
    top = values.index(max(values))
    assert len(values) == 1000
    assert (top, values[top]) == (270, pytest.approx(0.1))
    assert all(a < b for a, b in itertools.pairwise(values[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(values[top:900]))
    assert values[135] == pytest.approx((3e-4 + 0.1) / 2), "it rises in a straight line"
    assert values[270 + 315] == pytest.approx((3e-4 + 0.1) / 2), "it falls along a cosine"
    assert values[270 + 158] > 0.08, "which stays near the peak at first"
    assert max(values[900:]) <= 3e-4
    assert values[-1] < 1e-5
    momentum = defense.momentum_at(schedule)
    assert (momentum(0), momentum(270)) == (pytest.approx(0.95), pytest.approx(0.85))


def test_all_points_that_come_first_take_the_same_steps() -> None:
    points = [family().paper_params(), *family().starting_points().values()]
    assert [len(rates(family().to_settings(point))) for point in points] == [1000] * 4
    assert len({fingerprint(family().to_settings(point)) for point in points}) == 4


@pytest.mark.parametrize("steps", [200, 333, 1000, 7999])
def test_every_point_takes_exactly_the_steps_that_it_says(steps: int) -> None:
    space = family()
    for regime, cycles, share, cool in itertools.product(space.regimes(), (1, 2, 8), (0.1, 0.3, 0.9), (0.0, 0.3)):
        point = space.filled(
            {**regime, "steps": steps, "cycles": cycles, "phase1_share": share, "cooldown_share": cool}
        )
        schedule = SuperFineTuning(**space.to_settings(point)).schedule(IMAGES)
        assert schedule.total_steps == steps
        assert len(schedule.phase_steps) == point["phases"]
        assert min(schedule.phase_steps) >= 1
        if point["phases"] > 1:
            before = steps - schedule.cooldown_steps
            assert schedule.phase_steps[0] == pytest.approx(share * before, abs=1)


def test_settings_that_mean_nothing_to_a_point_are_not_among_its_settings() -> None:
    space = family()
    single = space.to_settings(space.filled({"phases": 1}))
    assert not {"lr_max2", "lr_max3", "cycles2", "iterations1"} & set(single)
    still = space.to_settings(space.filled({"shape": "constant"}))
    assert not {"lr_base", "up_fraction", "momentum_mode", "cooldown_steps"} & set(still)


def test_settings_of_the_four_number_search_are_points_of_the_family() -> None:
    given = {"lr_base": 1e-3, "lr_max1": 0.3, "lr_max2": 1e-3, "iterations": 400}
    params = family().params_of(given)
    assert (params["steps"], params["phases"], params["shape"]) == (800, 2, "linear")
    assert {**family().to_settings(params), **given} == family().to_settings(params)


def test_starting_points_keep_to_the_ranges_that_are_given() -> None:
    other = family().with_ranges(
        {"lr_max1": [0.2, 1.0], "shape": ["linear", "constant"], "steps": [1000, 1000]},
        "search.ranges",
        published=False,
    )
    assert list(other.starting_points()) == ["ft_constant"], "a point whose shape is not searched is left out"
    assert other.starting_points()["ft_constant"]["lr_max1"] == 0.2, "the nearer end"
    assert list(family().with_ranges({"steps": [1000, 1000]}, "search.ranges").starting_points()) == [*family().starts]


def test_a_range_keeps_the_grid_of_its_parameter() -> None:
    narrow = family().with_ranges({"up_fraction": [0.2, 0.6]}, "search.ranges").distributions["up_fraction"]
    assert (narrow.low, narrow.high, narrow.step) == (0.2, 0.6, 0.1)  # type: ignore[attr-defined]


def test_both_ends_of_every_parameter_are_tried_where_a_point_has_it() -> None:
    check_space("super_ft", family(), {}, {}, "search.ranges.super_ft")
    wrong = family().with_ranges({"lr_max3": [1e-5, 1.0]}, "search.ranges.super_ft")
    check_space("super_ft", wrong, {}, {"lr_max3": [1e-5, 1.0]}, "search.ranges.super_ft")
    adam = {"optimizer": "adamw"}
    with pytest.raises(SettingError, match=r"the starting point one_cycle does not work: .*needs optimizer sgd"):
        check_space("super_ft", family(), adam, {}, "search.ranges.super_ft")
    constant_momentum = family().with_ranges({"momentum_mode": ["constant"]}, "search.ranges.super_ft")
    check_space("super_ft", constant_momentum, adam, {}, "search.ranges.super_ft")
    without_starts = dataclasses.replace(family(), starts={})
    with pytest.raises(SettingError, match=r"super_ft: momentum_mode: 'inverse' does not work: .*needs optimizer sgd"):
        check_space("super_ft", without_starts, adam, {}, "search.ranges.super_ft")


def test_the_family_travels_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(family()))
    assert again.params_of(again.to_settings(again.starts["one_cycle"])) == dict(family().starts["one_cycle"])
