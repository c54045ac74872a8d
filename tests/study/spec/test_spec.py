"""A spec is complete, survives its own file, and refuses what makes no study, each in one line with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.plan.jobs import make_plan
from study.spec.load import load_spec, make_spec, recipe_names, recipe_path
from study.spec.schema import differences
from study.spec.yaml_io import SpecError, read_yaml_mapping
from tests.study.tiny import AS_PUBLISHED, TINY, make_driver, run, tiny_spec

# (assignment, key, value as printed, remedy)
BAD = [
    ("serch.trials=4", "serch", "", "did you mean 'search'"),
    ("atacks=[badnets]", "atacks", "", "did you mean 'attacks'"),
    ("search.trial=4", "search.trial", "", "did you mean 'search.trials'"),
    ("search.foo=1", "search.foo", "", "did you mean 'search.per'"),
    ("victim.epoch=1", "victim.epoch", "", "did you mean 'victim.epochs'"),
    ("resources.gpus=1", "resources.gpus", "", "did you mean 'resources.gpus_per_trial'"),
    ("attacks=[badnet]", "attack", "'badnet'", "did you mean 'badnets'"),
    ("attack.badnet.size=3", "attack", "'badnet'", "did you mean 'badnets'"),
    ("attack.badnets.sise=3", "attack.badnets.sise", "", "did you mean 'size'"),
    ("defenses=[superft]", "defense", "'superft'", "did you mean 'super_ft'"),
    ("baselines=[nonne]", "defense", "'nonne'", "did you mean 'none'"),
    ("defense.super_ft.lr_max=1", "defense.super_ft.lr_max", "", "did you mean 'lr_max"),
    ("defenses=[none]", "defense", "'none'", "has no search space"),
    ("model=preact_resnet", "model", "'preact_resnet'", "did you mean 'preact_resnet18'"),
    ("victim.recipe=quik", "victim.recipe", "'quik'", "did you mean 'quick'"),
    ("search.sampler=tp", "search.sampler", "'tp'", "did you mean 'tpe'"),
    ("search.space.super_ft=orderd", "search.space.super_ft", "'orderd'", "did you mean 'ordered'"),
    ("search.ranges.super_ft.iteration=[1, 500]", "search.ranges.super_ft.iteration", "", "did you mean 'iterations'"),
    ("search.ranges.superft.lr_base=[1e-5, 1]", "defense", "'superft'", "did you mean 'super_ft'"),
    ("clean_source=held", "clean_source", "'held'", "did you mean 'heldout'"),
    ("search.trials=0", "search.trials", "0", "greater than or equal to 1"),
    ("search.trials=-3", "search.trials", "-3", "greater than or equal to 1"),
    ("search.trials=many", "search.trials", "'many'", "whole number"),
    ("search.trials=2.5", "search.trials", "2.5", "whole number"),
    ("search.trials=yes", "search.trials", "True", "must not be true or false"),
    ("search.trials=", "search.trials", "None", "whole number"),
    ("search=5", "search", "5", "mapping of keys"),
    ("search.per=both", "search.per", "'both'", "'attack' or 'all'"),
    ("search.repeats=0", "search.repeats", "0", "greater than or equal to 1"),
    ("search.confirm=0", "search.confirm", "0", "greater than or equal to 1"),
    ("search={repeats: 3, budget_epochs: 9}", "search.repeats", "3", "leave one of the two out"),
    ("search.aggregate=worse", "search.aggregate", "'worse'", "mean, worst, or cvar:LEVEL"),
    ("search.aggregate=cvar:1.5", "search.aggregate", "'cvar:1.5'", "in (0, 1]"),
    ("search.aggregate=worst", "search.aggregate", "worst", "add per: all"),
    ("search.storage=redis", "search.storage", "'redis'", "journal or a database URL"),
    ("victim.poison_rate=0", "victim.poison_rate", "0", "greater than 0"),
    ("victim.poison_rate=1.01", "victim.poison_rate", "1.01", "less than or equal to 1"),
    ("victim.poison_rate=.nan", "victim.poison_rate", "nan", "finite number"),
    ("attack.badnets.poison_rate=0", "attack.badnets", "0", "(0, 1]"),
    ("attack.badnets.poison_rate=1.5", "attack.badnets", "1.5", "(0, 1]"),
    ("attack.blended.alpha=0", "attack.blended", "0", "(0, 1]"),
    ("attack.blended.alpha=1.2", "attack.blended", "1.2", "(0, 1]"),
    ("attack.badnets.alpha=-0.1", "attack.badnets", "-0.1", "(0, 1]"),
    ("attack.badnets.size=2.5", "attack.badnets.size", "2.5", "whole number"),
    ("attack.badnets=3", "attack.badnets", "3", "mapping"),
    ("victim.lr=0", "victim.lr", "0", "greater than 0"),
    ("victim.lr=-1e-3", "victim.lr", "-0.001", "greater than 0"),
    ("victim.lr=.inf", "victim.lr", "inf", "finite number"),
    ("victim.epochs=0", "victim.epochs", "0", "greater than 0"),
    ("victim.batch_size=1", "victim.batch_size", "1", "greater than or equal to 2"),
    ("defense.ft.lr=0", "defense.ft", "0", "lr must be > 0"),
    ("defense.ft.lr=-1", "defense.ft", "-1", "lr must be > 0"),
    ("defense.ft.lr=.nan", "defense.ft.lr", "nan", "must be a number"),
    ("defense.ft.lr=fast", "defense.ft.lr", "'fast'", "must be a number"),
    ("defense.ft.scope=head", "defense.ft.scope", "'head'", "one of all, classifier"),
    ("defense.super_ft.lr_max1=0", "defense.super_ft", "0", "lr_max1 must be > 0"),
    (
        "search.ranges.super_ft.iterations=[600, 700]",
        "search.ranges.super_ft.iterations",
        "[600, 700]",
        "published 500",
    ),
    ("search.ranges.super_ft.iterations=[900, 20]", "search.ranges.super_ft.iterations", "[900, 20]", "low <= high"),
    ("search.ranges.super_ft.iterations=[20]", "search.ranges.super_ft.iterations", "[20]", "[low, high]"),
    ("search.ranges.super_ft.iterations=[20.5, 900]", "iterations", "[20.5, 900]", "whole numbers"),
    ("search.ranges.super_ft.lr_base=[0, 1]", "search.ranges.super_ft.lr_base", "[0, 1]", "0 < low"),
    ("search.ranges.super_ft.lr_base=[1e-5, .inf]", "search.ranges.super_ft.lr_base", "inf", "[low, high]"),
    ("search.ranges.ft.scope=[]", "search.ranges.ft.scope", "[]", "at least one choice"),
    ("search.ranges.ft.scope=[all, foo]", "search.ranges.ft.scope", "'foo'", "one of all, classifier"),
    ("search.ranges.scratch.warm_fraction=[0.1, 5]", "search.ranges.scratch.warm_fraction", "5", "in (0, 1)"),
    ("clean_fraction=0", "clean_fraction", "0", "greater than 0"),
    ("clean_fraction=1.5", "clean_fraction", "1.5", "less than or equal to 1"),
    ("attacks=[]", "attacks", "[]", "at least one"),
    ("attacks=badnets", "attacks", "'badnets'", "must be a list"),
    ("attacks=[badnets, badnets]", "attacks", "'badnets'", "more than once"),
    ("seeds=[0, 0]", "seeds", "0", "more than once"),
    ("seeds=[-1]", "seeds.0", "-1", "greater than or equal to 0"),
    ("seeds=[9223372036854775808]", "seeds.0", "9223372036854775808", "less than or equal to 9223372036854775807"),
    ("seeds=3", "seeds", "3", "must be a list"),
    ("seeds=[yes]", "seeds", "[True]", "must not be true or false"),
    ("width=0", "width", "0", "greater than or equal to 1"),
    ("image_size=4", "image_size", "4", "greater than or equal to 8"),
    ("flip=false", "flip", "digits", "flip is of folder:PATH alone"),
    ("name=a b", "name", "'a b'", "letters, digits"),
    ("name=../up", "name", "'../up'", "letters, digits"),
    ("precision=half", "precision", "'half'", "'bfloat16'"),
    ("resources.gpus_per_trial=0.3", "resources.gpus_per_trial", "0.3", "1/k"),
    ("resources.gpus_per_trial=-1", "resources.gpus_per_trial", "-1", "1/k"),
    ("resources.gpus_per_trial=2.5", "resources.gpus_per_trial", "2.5", "1/k"),
    ("resources.gpus_per_trial=.inf", "resources.gpus_per_trial", "inf", "1/k"),
    ("resources.gpus_per_trial=all", "resources.gpus_per_trial", "'all'", "auto"),
    ("resources.cpus_per_trial=0", "resources.cpus_per_trial", "0", "greater than or equal to 1"),
]


@pytest.mark.parametrize(("assignment", "key", "value", "remedy"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_refused_naming_key_value_and_remedy(assignment: str, key: str, value: str, remedy: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_spec("quickstart", [assignment])
    message = str(raised.value)
    assert key in message
    assert value in message
    assert remedy in message
    assert "\n" not in message
    assert len(message) < 300


def test_a_study_without_any_defense_is_refused() -> None:
    with pytest.raises(SpecError, match="at least one defense"):
        tiny_spec("defenses=[]", "baselines=[]")


def test_without_a_search_nothing_is_confirmed() -> None:
    with pytest.raises(SpecError, match=r"search\.confirm: there is no search whose settings could be confirmed"):
        tiny_spec("search.confirm=2", "defenses=[]", "search.ranges={}")


def test_what_no_sampler_decides_is_not_repeated() -> None:
    with pytest.raises(SpecError, match=r"search\.repeats: there is no search to repeat; name a defense"):
        tiny_spec("search.repeats=2", "defenses=[]", "search.ranges={}")
    alone = "{lr_base: [3e-4, 3e-4], lr_max1: [0.1, 0.1], lr_max2: [1e-3, 1e-3], iterations: [499, 501]}"
    small = ("search.repeats=2", f"search.ranges.super_ft={alone}")
    with pytest.raises(
        SpecError, match=r"search\.repeats: the space of super_ft holds 3 settings, and each search of 4"
    ):
        tiny_spec(*small)
    assert tiny_spec(*small, "search.trials=2").search.repeats == 2


def test_one_attack_has_no_worst_one() -> None:
    with pytest.raises(SpecError, match=r"search\.aggregate: worst has no meaning over one attack; name several"):
        tiny_spec("search.per=all", "search.aggregate=worst")
    several = tiny_spec("search.per=all", "attacks=[badnets, wanet]", "search.aggregate=cvar")
    assert several.search.aggregate == "cvar:0.25"


def test_a_study_without_attacks_is_refused() -> None:
    with pytest.raises(SpecError, match="missing key 'attacks'"):
        make_spec({"baselines": ["none"]})


def test_a_setting_cannot_be_fixed_and_searched() -> None:
    with pytest.raises(SpecError, match=r"defense\.super_ft\.lr_max1 is fixed .* list super_ft under baselines"):
        make_plan(tiny_spec("defense.super_ft.lr_max1=0.3"))


def test_an_unknown_recipe_names_the_nearest_and_a_missing_file_itself() -> None:
    with pytest.raises(SpecError, match="did you mean 'quickstart'"):
        load_spec("quickstat")
    with pytest.raises(SpecError, match=r"no such file: nowhere\.yaml"):
        load_spec("nowhere.yaml")


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_shipped_recipe_loads_and_plans(recipe: str) -> None:
    spec = load_spec(recipe)
    plan = make_plan(spec)
    assert spec.name == recipe.rpartition("/")[2]
    assert plan.total_jobs > 0
    assert len(plan.searches) == len(spec.defenses) * (1 if spec.search.per == "all" else len(spec.attacks))


def test_quickstart_is_the_default() -> None:
    assert load_spec(None) == load_spec("quickstart")


ROUND_TRIPS = [
    (),
    ("name='1e5'",),
    ("name='2024'",),
    ("seeds=[3, 1, 4]", "search.per=all"),
    ("store=/somewhere/else", "data_root=/data", "download=true"),
    ("attack.badnets.position=centre", "victim.poison_rate=0.05", "clean_source=heldout"),
    ("search.space.super_ft=ordered", "search.ranges.super_ft.lr_max1=[1e-2, .5]"),
    ("resources.gpus_per_trial=0.125", "resources.cpus_per_trial=2"),
    ("search.storage=sqlite:///x.db", "search.sampler=nsga2"),
    ("defense.super_ft.grad_clip=1e-3", "defense.super_ft.cooldown_lr=", "clean_fraction=1e-2"),
]


@pytest.mark.parametrize("assignments", ROUND_TRIPS, ids=" ".join)
def test_a_spec_is_the_same_after_its_own_file(assignments: tuple[str, ...], tmp_path: Path) -> None:
    spec = tiny_spec(*assignments)
    path = tmp_path / "study.yaml"
    path.write_text(spec.to_yaml())
    again = make_spec(read_yaml_mapping(path))
    assert again == spec
    assert again.to_yaml() == spec.to_yaml()
    assert differences(spec, again) == []


def test_the_stored_spec_is_complete() -> None:
    """Defaults are written out, so that a later version with other defaults continues the same study."""
    spec = make_spec({"attacks": ["badnets"], "baselines": ["none"]})
    assert spec.width == 8
    assert spec.victim.recipe == "quick"
    assert set(read_yaml_mapping(recipe_path("quickstart"))) < set(spec.model_dump())
    for key in ("width", "clean_fraction", "precision", "resources", "seeds"):
        assert f"{key}:" in spec.to_yaml()


def test_what_the_data_set_decides_is_only_a_default() -> None:
    assert make_spec({"attacks": ["badnets"], "baselines": ["none"], "width": 3}).width == 3
    large = make_spec({"attacks": ["badnets"], "baselines": ["none"], "dataset": "cifar10"})
    assert (large.width, large.victim.recipe) == (64, "bb")


def test_poison_rate_of_the_victims_reaches_every_attack_that_does_not_set_its_own() -> None:
    spec = tiny_spec("attacks=[badnets, blended]", "victim.poison_rate=0.07", "attack.blended.poison_rate=0.2")
    settings = {attack.name: attack.settings for attack in spec.resolve().attacks}
    assert settings == {"badnets": {"poison_rate": 0.07}, "blended": {"poison_rate": 0.2}}


def test_recipe_keys_of_the_spec_go_over_the_recipe() -> None:
    changes = ("victim.epochs=0.5", "victim.lr=3e-2", "victim.weight_decay=0")
    recipe = tiny_spec("victim.recipe=bb", *changes).resolve().recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (0.5, 0.03, TINY["victim"]["batch_size"])
    assert recipe.weight_decay == 0


def test_differences_name_the_changed_keys_with_both_values() -> None:
    changed = differences(
        tiny_spec(), tiny_spec("clean_fraction=0.2", "attack.badnets.size=4", "search.sampler=random", "seeds=[1]")
    )
    assert changed == [
        "attack: {} -> None",
        "attack.badnets.size: None -> 4",
        "clean_fraction: 0.1 -> 0.2",
        "search.sampler: 'tpe' -> 'random'",
        "seeds: [0] -> [1]",
    ]


@pytest.mark.parametrize(
    "assignment",
    ["download=true", "data_root=/data", "store=/s", "resources.cpus_per_trial=2", "search.storage=sqlite:///x.db"],
)
def test_where_and_on_what_a_study_runs_may_change(assignment: str) -> None:
    assert differences(tiny_spec(), tiny_spec(assignment)) == []


def test_trials_may_grow_but_not_shrink() -> None:
    assert differences(tiny_spec(), tiny_spec("search.trials=9")) == []
    assert differences(tiny_spec("search.trials=9"), tiny_spec()) == ["search.trials: 9 -> 4 (may only grow)"]


def test_a_spec_does_not_change_what_it_was_made_from() -> None:
    before = repr(TINY)
    tiny_spec("attack.badnets.size=2")
    assert repr(TINY) == before


def test_password_of_a_database_stays_out_of_the_stored_spec() -> None:
    spec = tiny_spec("search.storage=postgresql://me:s3cret@host:5432/studies")
    assert "s3cret" not in spec.to_yaml()
    assert "postgresql://me:***@host:5432/studies" in spec.to_yaml()
    assert spec.search.storage.endswith("s3cret@host:5432/studies")  # what the study is run with
    plain = tiny_spec("search.storage=sqlite:////some/where.db")
    assert "sqlite:////some/where.db" in plain.to_yaml()


def test_a_space_may_leave_the_published_point_out_where_no_search_begins_with_it(tmp_path: Path) -> None:
    narrow = "search.ranges.super_ft.lr_max1=[0.3, 1.0]"
    with pytest.raises(
        SpecError, match=r"leaves out the published 0\.1, .* search\.published: false searches without it"
    ):
        tiny_spec(narrow)
    driver = make_driver(tiny_spec(narrow, "search.published=false", "baselines=[]"), tmp_path / "trials.jsonl")
    run(driver)
    rows = driver.ledger.rows()
    assert len(rows) == 4
    assert not any(row["published"] for row in rows)
    assert all(0.3 <= row["param.lr_max1"] <= 1.0 for row in rows)


def test_searches_begin_with_the_published_point_unless_told_otherwise(tmp_path: Path) -> None:
    for published in (True, False):
        spec = tiny_spec(f"search.published={str(published).lower()}", "baselines=[]", *AS_PUBLISHED)
        driver = make_driver(spec, tmp_path / f"{published}.jsonl")
        run(driver, slots=1)
        assert driver.ledger.rows()[0]["published"] is published
