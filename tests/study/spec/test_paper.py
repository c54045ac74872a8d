"""The paper's figures as studies: every one is there at the paper's scale and small, and compares as the rules say."""

import re
from pathlib import Path

import pytest

from study.plan.jobs import make_plan, prepare
from study.spec.load import load_spec, recipe_names, recipe_text
from study.spec.yaml_io import SpecError
from tests.study.tiny import tiny_spec
from trainables.registry import SettingError

FOLDER = "paper/"
FIGURES = [f"fig{number}" for number in range(7, 16)]
MAIN = ["main_standalone", "main_transfer", "main_encoder"]
FULL = [f"{FOLDER}{name}" for name in (*FIGURES, "table1", *MAIN)]
SMALL = [f"{name}-small" for name in FULL]
PAPERS = ["abl", "ac", "fp", "nad", "nc", "spectral", "super_ft"]
DOCS = Path(__file__).parents[3] / "docs" / "reproduction.md"
FIVE = ["badnets", "blended", "lf", "inputaware", "wanet"]


def test_all_thirteen_are_there_in_both_sizes() -> None:
    assert {*FULL, *SMALL, f"{FOLDER}readings"} == {name for name in recipe_names() if name.startswith(FOLDER)}


def test_each_has_its_place_in_the_manual() -> None:
    manual = DOCS.read_text()
    assert [name for name in FULL if f"`{name}`" not in manual] == []


@pytest.mark.parametrize("name", FULL)
def test_the_full_size_is_the_papers(name: str) -> None:
    spec = load_spec(name)
    assert spec.seeds == [0, 1, 2]
    assert spec.victim.require_implanted == "run"
    if name != f"{FOLDER}main_encoder":  # its encoder is trained as A.2 says by the attack's own settings
        assert spec.victim.recipe == "sha"
        victims = [cell.victim for cell in make_plan(spec).cells]
        assert {(victim.model, victim.width) for victim in victims} == {("preact_resnet18", 64)}
    assert re.search(r"^# \S.*Sha et al\.", recipe_text(name))


@pytest.mark.parametrize("name", FULL + SMALL)
def test_what_was_added_to_the_paper_is_set_apart_and_fine_tuning_at_the_peak_is_there(name: str) -> None:
    spec = load_spec(name)
    ours = {"ft_peak", "ft_peak_constant", "anp", "rnp", "ibau", "ft_sam", "fst", "clp"} & set(spec.baselines)
    assert ours <= set(spec.set_apart)
    assert {*PAPERS} & set(spec.set_apart) <= ({"super_ft"} if "encoder" in name else set())
    if "fig14" not in name:  # whose lines are fine-tuning at five rates
        by_label = {one.label: one.settings for one in spec.resolve().baselines}
        assert (by_label["ft_peak"]["lr"], by_label["ft_peak"]["steps"]) == (0.1, 1000)
        assert (by_label["ft_peak_constant"]["schedule"], by_label["ft_peak_constant"]["lr"]) == ("constant", 0.1)
        assert "scratch" in by_label
        assert "scratch" in spec.set_apart


@pytest.mark.parametrize("name", ["main_transfer", "main_encoder"])
def test_three_attackers_meet_two_defenders_each(name: str) -> None:
    spec = load_spec(f"{FOLDER}{name}")
    assert (len(spec.seeds), len(spec.defense_seeds)) == (3, 2)


@pytest.mark.parametrize("name", [name for name in FULL if re.search(r"fig(7|8|9|1[0-2])$|standalone", name)])
def test_the_papers_six_rivals_stand_beside_super_fine_tuning(name: str) -> None:
    for size in (name, f"{name}-small"):
        assert set(PAPERS) <= set(load_spec(size).baselines)


def test_each_figure_has_the_papers_axes() -> None:
    of = {name.removeprefix(FOLDER): load_spec(name) for name in FULL}
    assert (of["fig7"].dataset, of["fig8"].dataset, of["main_standalone"].dataset) == ("cifar100", "gtsrb", "cifar10")
    for name in ("fig7", "fig8", "main_standalone", "main_transfer", "fig13", "fig14", "fig15"):
        assert of[name].attacks == FIVE
    again = [of[f"fig{number}"] for number in range(9, 13)]
    assert [spec.attacks for spec in again] == [["blended"], ["inputaware"], ["lf"], ["wanet"]]
    for spec in again:
        assert spec.sweep == {"dataset": ["cifar10", "cifar100", "gtsrb"]}
        asked = spec.aftermath.resolved()
        assert asked is not None
        assert asked.reinjection is not None
        assert (asked.reinjection.epochs, asked.reinjection.lrs) == (50.0, (0.001,))
    assert of["fig13"].sweep["clean_fraction"] == [number / 10 for number in range(1, 11)]
    assert of["fig15"].sweep["defense.super_ft.lr_max1"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert of["fig15"].clean_fraction == 0.1
    assert of["table1"].attacks == ["imc", "latent", "handcrafted"]
    assert [of[name].curve.every for name in ("fig14", *MAIN)] == ["epoch"] * 4


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_fit_their_data(name: str) -> None:
    plan, _, _ = prepare(load_spec(name))
    assert plan.baselines
    # A small one begins from nothing that its full one does not have, but may look at fewer attacks and values.
    full = load_spec(name.removesuffix("-small"))
    small = load_spec(name)
    assert set(small.attacks) <= set(full.attacks)
    assert set(small.sweep) <= set(full.sweep)


def test_the_clean_model_is_one_mark_beside_the_repairs() -> None:
    jobs = make_plan(tiny_spec("baselines=[none, ft]", "scenario.clean_control=undefended", "seeds=[0, 1]")).baselines
    assert [job.label for job in jobs if job.role == "control"] == ["badnets/none/control"] * 2
    every = make_plan(tiny_spec("baselines=[none, ft]", "scenario.clean_control=true")).baselines
    assert sorted(job.label for job in every if job.role == "control") == ["badnets/ft/control", "badnets/none/control"]
    assert not [job for job in make_plan(tiny_spec("baselines=[none, ft]")).baselines if job.role == "control"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["baselines=[ft]", "scenario.clean_control=undefended"], "needs the baseline none"),
        (["scenario.clean_control=some"], "scenario.clean_control"),
        (["search.trials=true"], "must not be true or false"),
    ],
)
def test_a_clean_control_that_nothing_measures_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_spec(*given)


def test_a_model_that_an_attack_cannot_be_built_into_is_refused_before_any_work() -> None:
    spec = tiny_spec("attacks=[handcrafted]", "defenses=[]", "baselines=[none]", "model=airbench_cnn", "image_size=16")
    with pytest.raises(
        SettingError, match="form path is built for model preact_resnet18; use that model, or form head"
    ):
        prepare(spec)
