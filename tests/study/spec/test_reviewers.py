"""The reviewers' studies: every recipe says what it asks, plans, and compares what its header says that it compares."""

import dataclasses
import re
from pathlib import Path

import pytest

from study.plan.jobs import make_plan, prepare
from study.spec.load import load_spec, recipe_names, recipe_text
from study.spec.schema import StudySpec
from study.spec.sweep import combinations
from trainables.defenses.super_ft import SuperFineTuning
from trainables.training.schedules import lr_mass

FOLDER = "reviewers/"
NAMES = [name for name in recipe_names() if name.startswith(FOLDER)]
FULL = [name for name in NAMES if not name.endswith("-small")]
IMAGES = 4500  # that train a defender with a tenth of CIFAR-10
DOCS = Path(__file__).parents[3] / "docs" / "reviewers.md"


def schedules_of(name: str) -> dict[str, SuperFineTuning]:
    """The schedules of super-fine-tuning that a recipe compares, by label."""
    baselines = load_spec(f"{FOLDER}{name}").resolve().baselines
    return {one.label: SuperFineTuning(**one.settings) for one in baselines if one.defense == "super_ft"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_asks_one_question_and_says_what_would_answer_it_and_what_it_costs(name: str) -> None:
    head = recipe_text(name).partition("\nname:")[0]
    assert [head.count(f"\n# {word}: ") for word in ("Question", "Answer", "Cost")] == [1, 1, 1]
    assert re.search(r"\n# Question: [^?]+\?", head)
    spec = load_spec(name)
    plan = make_plan(spec)
    cost = " ".join(head.partition("\n# Cost: ")[2].replace("\n#", "").split())
    assert cost.startswith(f"{len(plan.victims())} victims (clean controls included) and {plan.total_jobs:,} repairs")


@pytest.mark.parametrize("name", NAMES)
def test_fine_tuning_at_the_peak_and_training_anew_stand_beside_every_schedule(name: str) -> None:
    """Rule 4 of the rules of comparison: a sentence about the schedule compares equal steps and equal peaks."""
    by_label = {one.label: one for one in load_spec(name).resolve().baselines}
    assert {"none", "ft", "ft_peak", "ft_peak_constant", "scratch"} <= set(by_label)
    for label in ("ft", "ft_peak", "ft_peak_constant"):
        assert by_label[label].settings["steps"] == SuperFineTuning().schedule(IMAGES).total_steps
    assert by_label["ft_peak"].settings["lr"] == SuperFineTuning().lr_max1


@pytest.mark.parametrize("name", FULL)
def test_every_study_has_a_small_one_and_a_line_in_the_manual(name: str) -> None:
    assert f"{name}-small" in NAMES
    small, full = load_spec(f"{name}-small"), load_spec(name)
    assert set(small.sweep) <= set(full.sweep)
    assert [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{name}` |")]


@pytest.mark.parametrize("name", [f"{name}-small" for name in FULL])
def test_the_small_studies_fit_their_data(name: str) -> None:
    plan, _, _ = prepare(load_spec(name))
    assert plan.baselines


def mass(one: SuperFineTuning) -> float:
    schedule = one.schedule(IMAGES)
    return lr_mass(schedule, 0, schedule.total_steps, one.momentum_at(schedule))


def test_shapes_have_the_steps_and_the_rate_mass_of_the_published_schedule() -> None:
    found = schedules_of("shape")
    assert len(found) == 5
    for label, one in found.items():
        assert one.schedule(IMAGES).total_steps == 1000, label
        assert mass(one) == pytest.approx(mass(SuperFineTuning()), rel=1e-3), label


def test_cycles_and_phases_have_the_steps_of_the_published_schedule() -> None:
    for one in schedules_of("cycles").values():
        assert one.schedule(IMAGES).total_steps == 1000
        assert mass(one) == pytest.approx(mass(SuperFineTuning()), rel=1e-6)
    assert {one.schedule(IMAGES).total_steps for one in schedules_of("phases").values()} == {999, 1000}


def test_no_repair_stands_in_a_study_twice_under_two_names() -> None:
    for name in NAMES:
        seen = [(one.defense, str(sorted(one.settings.items()))) for one in load_spec(name).resolve().baselines]
        assert len(seen) == len(set(seen)), name


def test_the_rates_of_the_victims_are_among_those_of_fine_tuning() -> None:
    for name in ("victim_rate", "victim_rate-small"):
        spec = load_spec(f"{FOLDER}{name}")
        tuned = [one.settings for one in spec.resolve().baselines if one.defense == "ft"]
        constant = {one["lr"] for one in tuned if (one["schedule"], one["steps"]) == ("constant", 1000)}
        assert set(spec.sweep["victim.lr"]) == constant


def test_few_images_meet_every_defense_asked_for_and_lengths_in_steps_and_epochs() -> None:
    spec = load_spec(f"{FOLDER}tiny_data")
    assert {"fp", "nad", "anp", "rnp", "ibau", "ft_sam", "fst", "clp", "sau", "awm"} <= set(spec.baselines)
    lengths = {(one.length_unit, one.lr_max1) for one in schedules_of("tiny_data").values()}
    assert lengths == {(unit, peak) for unit in ("step", "epoch") for peak in (0.1, 0.3)}
    by_epochs = schedules_of("tiny_data")["super_epochs"]
    assert by_epochs.schedule(45_000).total_steps == 1056, "six passes, as the published 1,000 steps nearly are"


def test_the_transformer_has_victims_by_adamw() -> None:
    spec = load_spec(f"{FOLDER}architecture_vit")
    assert (spec.model, spec.victim.recipe) == ("vit_small", "adamw")


def test_lengths_of_phase_1_change_nothing_else() -> None:
    for label, one in schedules_of("phase1_length").items():
        first, second = one.schedule(IMAGES).phase_steps
        assert max(map(one.schedule(IMAGES), range(first)), default=0.1) == pytest.approx(0.1)
        if label.startswith("of_1000"):
            assert (first, first + second) == (int(label.rpartition("_")[2]), 1000)
        elif label.startswith("first"):
            assert (first, second) == (int(label.rpartition("_")[2]), 500)


def test_qualities_of_the_data_reach_from_nothing_to_what_the_reviewers_named() -> None:
    for key, most in (("label_noise", 0.2), ("residual_poison", 0.05)):
        values = load_spec(f"{FOLDER}{key}").sweep[key]
        assert (min(values), max(values)) == (0.0, most)
        cells = make_plan(load_spec(f"{FOLDER}{key}")).cells
        assert {getattr(cell, key) for cell in cells} == set(values)
        assert len({dataclasses.replace(cell.victim) for cell in cells}) == 9, "the victims know nothing of it"
    rates = load_spec(f"{FOLDER}poison_rate").sweep["victim.poison_rate"]
    assert (min(rates), max(rates)) == (0.001, 0.2)


def test_a_standalone_study_runs_its_baselines_on_clean_models_where_it_is_asked_to() -> None:
    spec = load_spec(f"{FOLDER}clean_control-small")
    jobs = make_plan(spec).baselines
    roles = [job.role for job in jobs]
    assert roles.count("control") == roles.count("baseline") == len(jobs) / 2
    assert all(job.cell.control == (job.role == "control") for job in jobs)
    plain = StudySpec.model_validate({**spec.model_dump(mode="json"), "scenario": {}})
    assert {job.role for job in make_plan(plain).baselines} == {"baseline"}
    assert len(make_plan(plain).victims()) == len(make_plan(spec).victims()), "the clean models are there anyway"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_noise": 1.0}, "label_noise"),
        ({"residual_poison": -0.1}, "residual_poison"),
        ({"label_noise": 0.6, "residual_poison": 0.6}, "no image has both: their sum must be at most 1"),
        (
            {"sweep": {"label_noise": [0.1, 0.6], "residual_poison": [0.1, 0.6]}},
            "label_noise 0.6 and residual_poison 0.6 are shares",
        ),
        ({"clean_source": "elsewhere"}, "unknown clean_source 'elsewhere'"),
        ({"label_noise": 0.1, "aftermath": {"membership": {}}}, "aftermath.membership asks who was among"),
        (
            {"scenario": {"type": "new-head", "upstream": "digits", "clean_control": True}},
            "clean_control has no meaning in type new-head",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        combinations(StudySpec.model_validate({"attacks": ["badnets"], "baselines": ["none"], **given}))


def test_every_image_of_a_defender_may_be_spoilt_one_way_or_the_other() -> None:
    both = {"label_noise": 0.3, "residual_poison": 0.7}
    assert StudySpec.model_validate({"attacks": ["badnets"], "baselines": ["none"], **both}).label_noise == 0.3
