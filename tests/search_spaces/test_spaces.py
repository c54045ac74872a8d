"""Every search space holds its published point, speaks the defense's own settings, and can be narrowed around it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution

import search_spaces
from search_spaces import space as spaces
from search_spaces.space import Space, check_space, get_space, names, paper_point, published_for
from search_spaces.steps import LONGEST
from trainables.defenses.base import DEFENSES, CleanData
from trainables.registry import SettingError


def variants_of(defense: str) -> list[str]:
    module = __import__(f"search_spaces.{defense}", fromlist=["VARIANTS"])
    return ["default", *getattr(module, "VARIANTS", {})]


SPACE_MODULES = {defense: spaces.SPACES.get(defense) for defense in names()}
SPACES = [(defense, variant) for defense in names() for variant in variants_of(defense)]


@pytest.fixture(params=SPACES, ids=["/".join(space) for space in SPACES])
def named(request: pytest.FixtureRequest) -> tuple[str, Space]:
    defense, variant = request.param
    return defense, get_space(defense, variant)


def holds(distribution: BaseDistribution, value: Any) -> bool:
    return distribution._contains(distribution.to_internal_repr(value))


def draws(space: Space, count: int) -> list[dict[str, Any]]:
    """Parameters drawn at random, the corners of the space among them where they are few."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [study.ask(dict(space.distributions)).params for _ in range(count)]
    ends = [
        item.choices if isinstance(item, CategoricalDistribution) else (item.low, item.high)
        for item in space.distributions.values()
    ]
    corners = itertools.islice(itertools.product(*ends), 256)
    ended = [dict(zip(space.distributions, corner, strict=True)) for corner in corners]
    return [{name: params[name] for name in space.names_of(params)} for params in drawn + ended]


def test_there_are_spaces_and_each_belongs_to_a_defense() -> None:
    assert set(names()) <= set(DEFENSES.names())
    assert "super_ft" in names()


def test_published_point_lies_inside(named: tuple[str, Space]) -> None:
    _, space = named
    params = space.to_params(space.paper)
    for name in space.names_of(params):
        assert holds(space.distributions[name], params[name]), name


def test_published_point_builds_the_defense(named: tuple[str, Space]) -> None:
    defense, space = named
    built = DEFENSES.create(defense, space.paper)
    for key, value in space.paper.items():
        assert getattr(built, key) == value
        assert isinstance(value, bool) == isinstance(getattr(built, key), bool), key


def test_published_point_survives_the_way_to_parameters_and_back(named: tuple[str, Space]) -> None:
    _, space = named
    again = space.to_settings(space.paper_params())
    for key, value in again.items():
        assert value == (pytest.approx(space.paper[key], rel=1e-12) if isinstance(value, float) else space.paper[key])
    assert again.keys() <= space.paper.keys()


def test_published_point_of_the_default_space_is_trial_0_to_the_last_bit() -> None:
    for defense in names():
        space = get_space(defense)
        searched = space.to_settings({key: space.to_params(space.paper)[key] for key in space.distributions})
        assert searched == {key: space.paper[key] for key in searched}
        assert dict(paper_point(defense)) == dict(space.paper)


def test_every_parameter_becomes_a_field_of_the_defense(named: tuple[str, Space]) -> None:
    defense, space = named
    fields = {field.name for field in dataclasses.fields(DEFENSES.get(defense))}
    assert set(space.to_settings(space.to_params(space.paper))) <= fields
    assert set(space.paper) <= fields


def test_every_point_builds_the_defense(named: tuple[str, Space]) -> None:
    defense, space = named
    for params in draws(space, 50):
        DEFENSES.create(defense, space.to_settings(params))


def test_settings_of_any_point_give_its_parameters_back(named: tuple[str, Space]) -> None:
    _, space = named
    for params in draws(space, 50):
        again = space.to_params(space.to_settings(params))
        for name, value in params.items():
            assert again[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)


OTHER_POINTS = [
    ("ft_sam", "gtsrb", {"rho": 8.0, "smoothing": 0.0, "steps": 400}),
    ("ft_sam", "tiny_imagenet", {"rho": 8.0, "smoothing": 0.0, "steps": 2000}),
    ("fst", "gtsrb", {"alpha": 0.1, "steps": 105}),
    ("fst", "cifar100", {"alpha": 1e-3, "lr": 1e-3, "steps": 300}),
    ("fst", "tiny_imagenet", {"alpha": 1e-3, "lr": 1e-3, "steps": 600}),
    ("clp", "tiny_imagenet", {"u": 5.0}),
    ("ft", "tiny_imagenet", {"steps": 4000}),
    ("abl", "tiny_imagenet", {"tuning_epochs": 40, "finetuning_epochs": 120, "unlearning_epochs": 4}),
    ("sau", "tiny_imagenet", {"steps": 400}),
]


@pytest.mark.parametrize(("defense", "dataset", "changes"), OTHER_POINTS)
def test_published_point_is_that_of_the_data_set_where_the_source_states_one(
    defense: str, dataset: str, changes: dict[str, Any]
) -> None:
    space = get_space(defense, dataset=dataset)
    assert space.paper == {**get_space(defense).paper, **changes}
    assert space.published_for == published_for(defense, dataset) == dataset
    assert dict(paper_point(defense, dataset)) == space.paper


def test_other_data_sets_have_the_point_for_cifar10_and_say_so() -> None:
    for dataset in ("digits", "cifar10", "folder:/somewhere"):
        assert get_space("ft_sam", dataset=dataset).paper == get_space("ft_sam").paper
        assert published_for("ft_sam", dataset) == "cifar10"
    assert published_for("ft_sam", "cifar100") == "cifar10", "its source states none for it"
    assert published_for("clp", "cifar100") == "cifar100", "stated, and the same"
    assert published_for("none", "cifar10") == ""


def test_every_point_of_every_data_set_lies_inside_and_builds_the_defense() -> None:
    for defense, variant in SPACES:
        for dataset in ("cifar10", *SPACE_MODULES[defense].PAPER_FOR):
            space = get_space(defense, variant, dataset)
            params = space.paper_params()
            assert all(holds(space.distributions[name], value) for name, value in params.items())
            assert list(params) == space.names_of(params)
            built = DEFENSES.create(defense, {**space.beside(defense), **space.to_settings(params)})
            if variant == "default":
                assert dataclasses.asdict(built) == space.paper, "trial 0 is the published point, beside and all"


def test_published_points_are_complete() -> None:
    for defense in names():
        fields = {field.name for field in dataclasses.fields(DEFENSES.get(defense))}
        assert get_space(defense).paper.keys() == fields, defense
        assert all(other.keys() <= fields for other in SPACE_MODULES[defense].PAPER_FOR.values())


def longest(defense: str, space: Space) -> int:
    """Optimiser steps of the longest point on 100 clean images, or on the published training set of 50,000."""
    n = 100 if DEFENSES.get(defense).owns is CleanData else 50_000
    ends = [
        item.choices if isinstance(item, CategoricalDistribution) else (item.high,)
        for item in space.distributions.values()
    ]
    points = (
        space.to_settings(dict(zip(space.distributions, point, strict=True))) for point in itertools.product(*ends)
    )
    return max(DEFENSES.create(defense, {**space.beside(defense), **point}).plan(n, 10).steps for point in points)


def test_every_space_reaches_the_steps_of_super_ft(named: tuple[str, Space]) -> None:
    defense, space = named
    assert LONGEST == longest("super_ft", get_space("super_ft")) == 8000
    if defense != "clp":  # free of steps
        assert longest(defense, space) >= LONGEST


def test_scratch_tunes_its_length_and_its_peak() -> None:
    space = get_space("scratch").distributions
    assert space["iterations"] == get_space("super_ft").distributions["iterations"]
    assert space["lr_max1"] == get_space("super_ft").distributions["lr_max1"]


def test_ordered_rates_never_cross() -> None:
    space = get_space("super_ft", "ordered")
    for params in draws(space, 200):
        settings = space.to_settings(params)
        assert settings["lr_base"] <= settings["lr_max2"] * (1 + 1e-12)
        assert settings["lr_max2"] <= settings["lr_max1"] * (1 + 1e-12)


def test_super_ft_covers_the_sweeps_of_figures_14_and_15() -> None:
    space = get_space("super_ft").distributions
    for low, high, name in ((1e-2, 1.0, "lr_max1"), (3e-4, 1e-2, "lr_base")):
        assert holds(space[name], low)
        assert holds(space[name], high)


def test_other_ranges_change_only_what_they_name() -> None:
    space = get_space("super_ft")
    narrow = space.with_ranges({"iterations": [20, 500], "lr_max1": [0.1, 0.1]}, "search.ranges.super_ft")
    assert (narrow.distributions["iterations"].low, narrow.distributions["iterations"].high) == (20, 500)
    assert narrow.distributions["iterations"].log
    assert narrow.distributions["lr_max1"].single()
    assert narrow.distributions["lr_base"] == space.distributions["lr_base"]
    assert get_space("super_ft").distributions["iterations"].high == 4000


def test_a_categorical_parameter_takes_a_list_of_choices() -> None:
    narrow = get_space("ft").with_ranges({"scope": ["all", "bn_only"]}, "search.ranges.ft")
    assert narrow.distributions["scope"].choices == ("all", "bn_only")


@pytest.mark.parametrize(
    ("defense", "ranges", "message"),
    [
        ("super_ft", {"iterations": [20, 499]}, r"k\.iterations: \[20, 499\] leaves out the published 500"),
        ("super_ft", {"lr_base": [1e-3, 1e-2]}, r"k\.lr_base: .* leaves out the published 0\.0003"),
        ("ft", {"scope": ["bn_only"]}, r"k\.scope: \['bn_only'\] leaves out the published all"),
        ("super_ft", {"iteration": [1, 9]}, r"unknown parameter k\.iteration: did you mean 'iterations'"),
        ("super_ft", {"iterations": [500]}, r"k\.iterations: must be \[low, high\]"),
        ("super_ft", {"iterations": [1, 2, 3]}, r"k\.iterations: must be \[low, high\]"),
        ("super_ft", {"iterations": [1000, 20]}, r"k\.iterations: .*low <= high"),
        ("super_ft", {"iterations": ["a", "b"]}, r"k\.iterations: must be two whole numbers"),
        ("super_ft", {"iterations": [True, 900]}, r"k\.iterations: must be two whole numbers"),
        ("super_ft", {"lr_max1": [0.0, 1.0]}, r"k\.lr_max1: .*0 < low"),
        ("super_ft", {"lr_max1": [0.01, math.inf]}, r"k\.lr_max1: must be two numbers"),
        ("ft", {"scope": []}, r"k\.scope: must name at least one choice"),
    ],
)
def test_ranges_that_make_no_search_are_refused(defense: str, ranges: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        get_space(defense).with_ranges(ranges, "k")


def test_a_defense_without_a_space_cannot_be_searched_and_has_no_published_point() -> None:
    with pytest.raises(SettingError, match="'none' has no search space"):
        get_space("none")
    assert dict(paper_point("none")) == {}


def test_an_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="did you mean 'ordered'"):
        get_space("super_ft", "order")


def test_spaces_are_data_and_import_nothing_above_them() -> None:
    for defense in names():
        module = __import__(f"search_spaces.{defense}", fromlist=["SPACE"])
        assert all(isinstance(item, BaseDistribution) for item in module.SPACE.values())
        assert isinstance(module.PAPER, dict)
    assert search_spaces.__doc__


# -- spaces of somebody else's ----------------------------------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[Callable[..., None]]:
    """Registers a space for a defense that has none (``none`` takes no settings, ``probe`` is not there)."""

    def add(**holds: Any) -> None:
        spaces.SPACES.register("probe")(type("Mine", (), holds))

    yield add
    spaces.SPACES.remove("probe")


def test_a_space_from_outside_is_a_space(outside: Callable[..., None]) -> None:
    item = optuna.distributions.FloatDistribution(0.1, 1.0)
    outside(SPACE={"x": item}, PAPER={"x": 0.5}, VARIANTS={"wide": Space({"x": item}, {"x": 1.0})})
    assert "probe" in names()
    assert get_space("probe").distributions == {"x": item}
    assert get_space("probe", "wide").paper == {"x": 1.0}
    assert dict(paper_point("probe")) == {"x": 0.5}


ITEM = optuna.distributions.FloatDistribution(0.1, 1.0)


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ({"SPACE": {"x": ITEM}}, "search space of probe has no PAPER"),
        ({"PAPER": {"x": 0.5}}, "search space of probe has no SPACE"),
        ({"SPACE": {"x": [0, 1]}, "PAPER": {"x": 0.5}}, r"SPACE\['x'\] must be an Optuna distribution"),
        ({"SPACE": {"x": ITEM}, "PAPER": {"y": 0.5}}, r"\(default\): PAPER has no 'x', but SPACE searches it"),
        ({"SPACE": {"x": ITEM}, "PAPER": {"x": 2.0}}, r"PAPER\['x'\] = 2\.0 lies outside .* trial 0"),
        (
            {"SPACE": {"x": ITEM}, "PAPER": {"x": 0.5}, "VARIANTS": {"w": Space({"z": ITEM}, {"x": 0.5})}},
            r"\(w\): PAPER has no 'z'",
        ),
    ],
)
def test_what_is_no_space_is_refused_when_it_registers(
    holds: dict[str, Any], message: str, outside: Callable[..., None]
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        outside(**holds)
    assert "\n" not in str(caught.value)
    assert "probe" not in names()


@pytest.mark.parametrize("defense", names())
def test_our_own_spaces_pass_the_check_of_plan_and_run(defense: str) -> None:
    check_space(defense, get_space(defense), {}, {}, "k")


def test_ends_and_published_point_that_the_defense_refuses_are_named() -> None:
    good = get_space("clp")
    low = dataclasses.replace(good, distributions={"u": optuna.distributions.FloatDistribution(-1.0, 9.0)})
    with pytest.raises(SettingError, match=r"^search space of clp: u: -1\.0 does not work: defense\.clp: u must be"):
        check_space("clp", low, {}, {}, "search.ranges.clp")
    with pytest.raises(SettingError, match=r"^search\.ranges\.clp\.u: -1\.0 does not work"):
        check_space("clp", low, {}, {"u": [-1, 9]}, "search.ranges.clp")
    with pytest.raises(SettingError, match=r"^search space of clp: the published point does not work"):
        check_space("clp", dataclasses.replace(good, paper={"u": -3.0}), {}, {}, "k")


@pytest.mark.parametrize("defense", ["ac", "spectral"])
def test_a_space_splits_into_its_detector_and_the_rest(defense: str) -> None:
    space = get_space(defense)
    parts = space.split()
    assert parts is not None
    detector, rest = parts
    assert {**detector.distributions, **rest.distributions} == space.distributions
    assert set(detector.distributions) == set(space.detector)
    assert set(rest.distributions) == {"lr"}
    both = {**detector.to_settings(detector.paper_params()), **rest.to_settings(rest.paper_params())}
    assert both == space.to_settings(space.paper_params())
    assert rest.split() is None


def test_a_space_without_two_parts_does_not_split() -> None:
    assert get_space("super_ft").split() is None
    assert get_space("ac", "detector").split() is None
    assert get_space("ac").with_ranges({"lr": [0.01, 0.01]}, "key").split() is None, "one rate is nothing to search"


def test_only_a_defense_that_detects_has_a_detector_in_its_space() -> None:
    for defense in names():
        if get_space(defense).detector:
            assert DEFENSES.get(defense).detects, defense


def test_a_detector_parameter_that_is_not_searched_is_named() -> None:
    space = get_space("ac")

    class Holder:
        SPACE = space.distributions
        PAPER = space.paper
        DETECTOR = ("nb_dimms",)

    with pytest.raises(SettingError, match="DETECTOR names 'nb_dimms'"):
        spaces._check("ac", Holder)
