"""A plan lists exactly the work of a study, and what it costs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from search_spaces import space as search_spaces
from study.plan.costs import trial_cost, victims_cost, work_left
from study.plan.jobs import check_plan, make_plan
from study.spec.load import load_spec, make_spec
from study.spec.methods import is_published
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from tests.toy import toy_dataset
from trainables.data.images import DataError, Dataset
from trainables.data.load import load_dataset
from trainables.defenses.base import DEFENSES
from trainables.job import Cell
from trainables.models.build import ModelError
from trainables.registry import SettingError
from trainables.storage.store import Store
from trainables.workbench import Workbench

TWO = ("attacks=[badnets, blended]", "seeds=[0, 7]", "baselines=[none, ft]", "defenses=[super_ft, scratch]")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Victims that several plans have in common are trained once."""
    return Store(tmp_path_factory.mktemp("store"))


def cells_of(cells: tuple[Cell, ...]) -> list[tuple[str, str, int]]:
    return [(cell.victim.attack, cell.defense, cell.seed) for cell in cells]


def test_per_attack_makes_one_search_for_each_attack_and_defense() -> None:
    plan = make_plan(tiny_spec(*TWO))
    assert [search.label for search in plan.searches] == [
        "badnets/super_ft",
        "badnets/scratch",
        "blended/super_ft",
        "blended/scratch",
    ]
    assert cells_of(plan.searches[2].cells) == [("blended", "super_ft", 0), ("blended", "super_ft", 7)]


def test_per_all_scores_each_setting_on_every_attack_and_seed() -> None:
    plan = make_plan(tiny_spec(*TWO, "search.per=all"))
    assert [search.label for search in plan.searches] == ["all/super_ft", "all/scratch"]
    assert cells_of(plan.searches[1].cells) == [
        ("badnets", "scratch", 0),
        ("badnets", "scratch", 7),
        ("blended", "scratch", 0),
        ("blended", "scratch", 7),
    ]


@pytest.mark.parametrize("per", ["attack", "all"])
def test_total_counts_baselines_and_settings_on_all_their_cells(per: str) -> None:
    plan = make_plan(tiny_spec(*TWO, f"search.per={per}", "search.trials=5"))
    assert len(plan.baselines) == 2 * 2 * 2
    assert plan.total_jobs == sum(plan.jobs_by_label().values()) == 8 + 2 * 2 * 2 * 5


def test_baselines_run_once_per_attack_and_seed_at_the_published_point_with_the_specs_settings_over_it() -> None:
    plan = make_plan(tiny_spec(*TWO, "defense.ft.lr=3e-4"))
    assert [(job.trial, job.cell.seed) for job in plan.baselines] == [
        ("badnets/none/baseline", 0),
        ("badnets/none/baseline", 7),
        ("badnets/ft/baseline", 0),
        ("badnets/ft/baseline", 7),
        ("blended/none/baseline", 0),
        ("blended/none/baseline", 7),
        ("blended/ft/baseline", 0),
        ("blended/ft/baseline", 7),
    ]
    ft = next(job for job in plan.baselines if job.trial == "badnets/ft/baseline")
    assert (ft.settings["lr"], ft.settings["steps"], ft.role, ft.published) == (3e-4, 1000, "baseline", False)


def test_ids_are_unique_over_trial_attack_and_seed() -> None:
    for per in ("attack", "all"):
        plan = make_plan(tiny_spec(*TWO, f"search.per={per}", "baselines=[none, super_ft]"))
        jobs = [(job.trial, job.cell.victim.attack, job.cell.seed) for job in plan.baselines]
        for search in plan.searches:
            for number in range(3):
                for cell in search.cells:
                    jobs.append((search.trial_id(number), cell.victim.attack, cell.seed))
        assert len(set(jobs)) == len(jobs)


def test_settings_of_a_search_are_the_fixed_ones_and_the_searched() -> None:
    search = make_plan(tiny_spec()).searches[0]
    settings = search.settings(search.paper_params())
    assert settings["batch_size"] == 16
    assert settings["lr_max1"] == 0.1
    assert not is_published("super_ft", settings, "digits"), "the spec fixes another batch and shorter phases"
    stated = {key: value for key, value in settings.items() if key not in ("batch_size", "cycles1", "cycles2")}
    assert is_published("super_ft", stated, "digits")
    assert not is_published("super_ft", {**stated, "lr_max1": 0.2}, "digits")


@pytest.mark.parametrize("defense", search_spaces.names())
def test_the_first_setting_of_every_search_is_the_published_one(defense: str) -> None:
    plan = make_plan(make_spec({"attacks": ["badnets"], "defenses": [defense]}))
    (search,) = plan.searches
    assert is_published(defense, search.settings(search.paper_params()), "digits")


@pytest.mark.parametrize("dataset", ["gtsrb", "tiny_imagenet", "cifar100"])
@pytest.mark.parametrize("defense", search_spaces.names())
def test_search_and_baseline_have_the_published_point_of_their_data_set(defense: str, dataset: str) -> None:
    for role in ("defenses", "baselines"):
        plan = make_plan(make_spec({"attacks": ["badnets"], role: [defense], "dataset": dataset}))
        settings = (
            plan.searches[0].settings(plan.searches[0].paper_params()) if plan.searches else plan.baselines[0].settings
        )
        assert dataclasses.asdict(DEFENSES.create(defense, settings)) == search_spaces.paper_point(defense, dataset)
        assert is_published(defense, settings, dataset)
        same = search_spaces.paper_point(defense, dataset) == search_spaces.paper_point(defense)
        assert is_published(defense, settings, "digits") == same, (
            "elsewhere the point for CIFAR-10 is the published one"
        )


@pytest.mark.parametrize(
    ("defense", "changes"),
    [
        ("ft", {"batch_size": 64}),
        ("ft", {"momentum": 0.0}),
        ("super_ft", {"cycles1": 2.0}),
        ("fst", {"weight_decay": 5e-4}),
        ("ibau", {"inner_lr": 1.0}),
    ],
)
def test_a_point_is_published_only_if_all_that_is_stated_is_as_stated(defense: str, changes: dict[str, Any]) -> None:
    assert is_published(defense, {}, "cifar10")
    assert not is_published(defense, changes, "cifar10")


def test_a_point_is_published_whatever_the_rounding_and_never_without_a_published_point() -> None:
    paper = {"lr_base": 3e-4 * (1 + 1e-12), "lr_max1": 0.1, "lr_max2": 1e-3, "iterations": 500}
    assert is_published("super_ft", paper, "digits")
    assert is_published("super_ft", {}, "digits"), "the defaults"
    assert not is_published("none", {}, "digits")


def test_victims_are_one_per_attack_and_seed_with_their_controls_first() -> None:
    victims = make_plan(tiny_spec(*TWO)).victims()
    assert [(cell.victim.attack, cell.seed) for cell in victims] == [
        ("clean", 0),
        ("clean", 7),
        ("badnets", 0),
        ("badnets", 7),
        ("blended", 0),
        ("blended", 7),
    ]


def test_held_out_clean_data_is_kept_from_the_attacker() -> None:
    plan = make_plan(tiny_spec("clean_source=heldout", "clean_fraction=0.3"))
    assert {cell.victim.reserved_fraction for cell in plan.cells} == {0.3}
    assert {cell.victim.reserved_fraction for cell in make_plan(tiny_spec()).cells} == {None}


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("clean_source=unpoisoned",),
        ("clean_source=heldout",),
        ("defense.super_ft.select=val",),
        ("defense.super_ft.batch_size=1000",),
        ("baselines=[none, ft]", "defense.ft.steps=8", "defense.ft.scope=classifier"),
    ],
    ids=lambda value: " ".join(value) or "tiny",
)
def test_the_planned_cost_is_what_a_real_run_counts(assignments: tuple[str, ...], store: Store) -> None:
    torch.set_num_threads(1)
    spec = tiny_spec("search.trials=3", *assignments)
    plan = make_plan(spec)
    bench = Workbench(store, torch.device("cpu"))
    dataset = bench.dataset(plan.cells[0].data)
    check_plan(plan, dataset)
    baseline_work, search_work = (
        [item for item in work_left(plan, dataset) if (item.role == "search") is searched] for searched in (False, True)
    )

    def in_epochs(row: dict[str, Any]) -> float:
        return (row["forward_samples"] + 2 * row["backward_samples"]) / (3 * row["train_size"])

    baselines = sum(in_epochs(bench.run(job.cell, job.settings).row()) for job in plan.baselines)
    search = plan.searches[0]
    published = in_epochs(bench.run(search.cells[0], search.settings(search.paper_params())).row())
    assert sum(item.epochs for item in baseline_work) == pytest.approx(baselines)
    (searched,) = search_work
    assert (searched.each, searched.epochs) == (pytest.approx(published), pytest.approx(3 * published))
    trained = 0.0
    for cell in plan.victims():
        facts = bench.victim(cell).facts
        work = facts["counters"]
        trained += (work["forward_samples"] + 2 * work["backward_samples"]) / (3 * facts["dataset"]["train_size"])
    assert victims_cost(plan.victims(), dataset) == pytest.approx(trained)


@pytest.mark.parametrize(
    ("assignments", "error", "message"),
    [
        (("clean_fraction=1e-3",), DataError, "clean_fraction 0.001 leaves 10 of 10 classes"),
        (("attack.badnets.size=9",), SettingError, "size 9 .* does not fit an image of 8 pixels"),
        (("attack.badnets.target_label=10",), SettingError, "target_label"),
        (("clean_source=heldout", "clean_fraction=1"), DataError, "smaller clean_fraction"),
        (("model=resnet18",), ModelError, "width: resnet18 has a fixed width, got 2"),
        (("model=vgg19_bn", "width="), ModelError, "image_size: vgg19_bn needs 16 pixels"),
        (("baselines=[nad]",), DataError, "defense.nad needs attention maps .* got 1x1 from stage 5 of 5 at 8 pixels"),
        *(
            (
                ("attacks=[handcrafted]", "attack.handcrafted.form=head", f"baselines=[none, {name}]"),
                DataError,
                f"{name} needs the poisoned training set",
            )
            for name in ("abl", "ac", "spectral")
        ),
        (("attacks=[badnets, latent]", "baselines=[ac]"), DataError, "attack latent releases none"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_any_work(
    assignments: tuple[str, ...], error: type[Exception], message: str, digits: Dataset
) -> None:
    with pytest.raises(error, match=message):
        check_plan(make_plan(tiny_spec(*assignments)), digits)


def test_a_task_of_two_classes_is_refused_before_any_work_by_what_compares_classes() -> None:
    plan = make_plan(tiny_spec("baselines=[nc]", "clean_fraction=0.5"))
    with pytest.raises(DataError, match=r"^defense nc compares .* at least 3 classes, got 2$"):
        check_plan(plan, toy_dataset(num_classes=2, image_size=8))


def test_the_planned_cost_of_what_looks_at_every_class_grows_with_their_number() -> None:
    settings = {"mask_steps": 1, "steps": 0}
    plan = make_plan(tiny_spec("baselines=[nc]", "clean_fraction=0.1"))
    for classes in (10, 20):
        data = toy_dataset(train=20 * classes, num_classes=classes, image_size=8)
        # One image per class is left for training, and each gets the trigger of every class.
        assert trial_cost(plan.cells[0], settings, data) == pytest.approx(classes * classes / len(data.train))


def test_the_quickstart_plan_fits_its_data() -> None:
    spec = load_spec("quickstart")
    check_plan(make_plan(spec), load_dataset(spec.dataset, image_size=spec.image_size))


def test_a_plan_reads_no_data() -> None:
    spec = make_spec({"attacks": ["badnets"], "baselines": ["none"], "dataset": "folder:/nowhere"})
    assert make_plan(spec).total_jobs == 1


def test_what_a_space_leaves_alone_may_be_fixed_by_the_spec() -> None:
    """Spectral's published point states 100 epochs; they are not searched, so a study may set fewer for all trials."""
    plan = make_plan(tiny_spec("defenses=[spectral]", "search.ranges={}", "defense.spectral.epochs=7"))
    (search,) = plan.searches
    settings = search.settings(search.paper_params())
    assert settings["epochs"] == 7
    assert not is_published("spectral", settings, "digits")
    with pytest.raises(SpecError, match=r"defense\.spectral\.remove_fraction is fixed by the spec but searched"):
        make_plan(tiny_spec("defenses=[spectral]", "search.ranges={}", "defense.spectral.remove_fraction=0.1"))
