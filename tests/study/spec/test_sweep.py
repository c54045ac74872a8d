"""A sweep in a spec: its combinations, and one clear line where it is none."""

from __future__ import annotations

import pytest

from study.spec.combinations import in_words
from study.spec.load import make_spec, without_sweep
from study.spec.schema import differences
from study.spec.sweep import combinations
from study.spec.yaml_io import SpecError, parse_yaml
from tests.study.tiny import tiny_spec

TWO = "sweep={clean_fraction: [0.1, 0.5], victim.lr: [0.01, 0.1]}"


def test_combinations_are_the_cross_product_in_order() -> None:
    found = combinations(tiny_spec(TWO))
    assert [(part.spec.clean_fraction, part.spec.victim.lr) for part in found] == [
        (0.1, 0.01),
        (0.1, 0.1),
        (0.5, 0.01),
        (0.5, 0.1),
    ]
    assert [part.name for part in found][1:3] == ["clean_fraction-0.1--lr-0.1", "clean_fraction-0.5--lr-0.01"]
    assert in_words(found[2].json) == "clean_fraction 0.5, victim.lr 0.01"
    assert all(part.spec.sweep == {} for part in found)


def test_without_a_sweep_the_study_is_its_only_combination() -> None:
    spec = tiny_spec()
    (only,) = combinations(spec)
    assert (only.name, only.json, only.spec) == ("", "", spec)


def test_a_sweep_may_be_nested_and_the_stored_spec_is_the_same_study() -> None:
    nested = tiny_spec("sweep={clean_fraction: [0.1, 0.5], victim: {lr: [0.01, 0.1]}}")
    assert nested == tiny_spec(TWO)
    again = make_spec(parse_yaml(nested.to_yaml(), "study.yaml"))
    assert differences(nested, again) == []
    assert [part.spec for part in combinations(again)] == [part.spec for part in combinations(nested)]


def test_defaults_that_depend_on_a_swept_key_are_each_combinations_own() -> None:
    spec = make_spec({"attacks": ["badnets"], "baselines": ["none"], "sweep": {"dataset": ["digits", "cifar10"]}})
    digits, cifar10 = (part.spec for part in combinations(make_spec(parse_yaml(spec.to_yaml(), "study.yaml"))))
    alone = make_spec({"attacks": ["badnets"], "baselines": ["none"], "dataset": "cifar10"})
    assert (cifar10.width, cifar10.victim.recipe) == (alone.width, alone.victim.recipe)
    assert (digits.width, digits.victim.recipe) != (cifar10.width, cifar10.victim.recipe)


def test_the_model_of_an_encoder_study_is_an_encoder_in_every_combination() -> None:
    scenario = {"type": "encoder", "upstream": "cifar10"}
    given = {"attacks": ["badencoder"], "baselines": ["none"], "scenario": scenario, "dataset": "digits"}
    spec = make_spec({**given, "sweep": {"clean_fraction": [0.1, 0.2]}})
    assert {part.spec.model for part in combinations(spec)} == {make_spec(given).model} == {"encoder_resnet18"}


def test_values_that_look_alike_in_a_name_stay_apart() -> None:
    spec = {"attacks": ["badnets"], "baselines": ["none"], "sweep": {"dataset": ["folder:/a/x", "folder:/b/x"]}}
    names = [part.name for part in combinations(make_spec(spec))]
    assert names == ["dataset-x", "dataset-x--1"]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("{clean_fracton: [0.1, 0.5]}", "unknown key 'sweep.clean_fracton': did you mean 'clean_fraction'?"),
        ("{lr_max1: [0.1, 0.3]}", "unknown key 'sweep.lr_max1': did you mean 'defense.super_ft.lr_max1'?"),
        ("{victim.rate: [0.1, 0.3]}", "unknown key 'sweep.victim.rate'"),
        ("{defense.ft.lrr: [0.1, 0.3]}", "unknown setting defense.ft.lrr: did you mean 'lr'"),
        ("{clean_fraction: [0.1]}", "sweep.clean_fraction: a sweep needs two values or more, got [0.1]; set clean_f"),
        ("{clean_fraction: []}", "sweep.clean_fraction: a sweep needs two values or more, got none"),
        ("{clean_fraction: 0.1}", "sweep.clean_fraction: must be a list of values such as [a, b], got 0.1"),
        ("{clean_fraction: [0.1, 0.1]}", "sweep.clean_fraction: names 0.1 more than once"),
        ("{clean_fraction: [0.1, 3]}", "sweep.clean_fraction: must be less than or equal to 1, got 3"),
        ("{clean_fraction: [0.1, [1]]}", "sweep.clean_fraction: a value is a number, a text, true or false, got [1]"),
        ("{defense.super_ft.lr_max1: [0.1, 0.3]}", "defense.super_ft.lr_max1 is fixed by the spec but searched"),
        ("{search.trials: [8, 16, 32]}", "share one search.trials; make 3 studies instead, one for each of 8, 16, 32"),
        ("{scenario.type: [standalone, same-label]}", "make 2 studies instead, one for each of standalone, same-label"),
        ("{resources.cpus_per_trial: [1, 2]}", "sweep.resources.cpus_per_trial: all combinations of a study share one"),
        ("{curve.every: [1, 2]}", "make 2 studies instead, one for each of 1, 2"),
        ("{seeds: [1, 2]}", "sweep.seeds: a study has many seeds without a sweep; list all of them under seeds"),
        ("{attacks: [badnets, blended]}", "list all of them under attacks"),
        ("[clean_fraction]", "sweep: must be a mapping of keys to lists of values, got ['clean_fraction']"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(sweep: str, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        tiny_spec(f"sweep={sweep}")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("every", ["0", "-1", "1.5", "true", "step"])
def test_a_curve_is_measured_every_epoch_or_so_many_steps(every: str) -> None:
    assert tiny_spec("curve.every=epoch").curve.every == "epoch"
    assert tiny_spec("curve.every=20").curve.every == 20
    with pytest.raises(SpecError, match=r"curve\.every: must be epoch or a number of steps >= 1, got"):
        tiny_spec(f"curve.every={every}")


def test_a_command_on_one_trial_takes_neither() -> None:
    assert without_sweep(tiny_spec()) == tiny_spec()
    for given in (TWO, "curve.every=epoch"):
        with pytest.raises(SpecError, match="use superft run"):
            without_sweep(tiny_spec(given))
