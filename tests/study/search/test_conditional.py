"""A search over a space with conditions tells Optuna what a setting has and no more, and survives being killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from search_spaces.conditions import OnlyIf
from search_spaces.space import Space, get_space
from study.plan.jobs import Search, make_plan
from study.record.optuna_storage import open_storage
from study.results.fronts import fronts
from study.search.conditional import ConditionalTPE
from study.search.optuna_search import OptunaSearch
from study.search.optuna_study import space_hash
from study.search.warm_start import points_for
from study.simulate.table import read_table
from study.spec.load import load_spec, make_spec, recipe_text
from study.spec.yaml_io import SpecError
from tests.study.tiny import AS_PUBLISHED, TINY, made_up_row, make_driver, run, tiny_spec
from trainables.registry import SettingError

# Left and right have a parameter each; what is good in one has nothing to do with the other.
FORK = Space(
    {
        "way": CategoricalDistribution(["left", "right", "none"]),
        "x": FloatDistribution(0.0, 1.0),
        "y": FloatDistribution(0.0, 1.0),
        "z": FloatDistribution(0.0, 1.0),
    },
    {"way": "left", "x": 0.5, "z": 0.5},
    conditions={"x": (OnlyIf("way", ("left",)),), "y": (OnlyIf("way", ("right",)),)},
    starts={"right": {"way": "right", "y": 0.25, "z": 0.5}, "none": {"way": "none", "z": 0.75}},
)
FAMILY = (
    *("search.space.super_ft=family", "search.ranges={}", "search.trials=14"),
    *("defense.super_ft={batch_size: 256}",),
)


def make(storage: BaseStorage, space: Space = FORK, target: int = 20, sampler: str = "tpe") -> OptunaSearch:
    search = Search("badnets/toy", "toy", (0,), space, {"fixed": 7})  # type: ignore[arg-type]
    return OptunaSearch(search, storage, study_name="toy", sampler=sampler, seed=0, startup_trials=6, target=target)


def value(settings: Mapping[str, Any]) -> tuple[float, float]:
    own = settings.get("x", settings.get("y", 0.9))
    return own * settings["z"], 1.0 - own


def go_on(search: OptunaSearch, count: int | None = None) -> dict[str, dict[str, Any]]:
    asked: dict[str, dict[str, Any]] = {}
    while (count is None or len(asked) < count) and (one := search.ask()) is not None:
        search.tell(one[0], value(one[1]))
        asked[one[0]] = one[1]
    return asked


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_inactive_parameter_is_in_no_trial_and_in_no_setting(sampler: str) -> None:
    search = make(InMemoryStorage(), sampler=sampler)
    search.resume({}, {})
    settings = go_on(search)
    assert len(settings) == 20
    for trial in search.study.get_trials(deepcopy=False):
        names = {"left": {"way", "x", "z"}, "right": {"way", "y", "z"}, "none": {"way", "z"}}[trial.params["way"]]
        assert set(trial.params) == set(trial.distributions) == names
        assert set(settings[trial.user_attrs["id"]]) == names | {"fixed"}
    assert {trial.params["way"] for trial in search.study.get_trials(deepcopy=False)} == {"left", "right", "none"}


def test_the_published_point_and_the_starts_come_first_in_their_order() -> None:
    search = make(InMemoryStorage())
    search.resume({}, {})
    first = list(go_on(search, 3).values())
    assert [one["way"] for one in first] == ["left", "right", "none"]
    assert first == [search.search.settings(point) for point in (FORK.paper_params(), *FORK.starts.values())]
    assert [search.search.start_named(one) for one in first] == [None, "right", "none"]


def test_without_the_published_point_a_search_begins_with_no_start_either() -> None:
    search = Search("badnets/toy", "toy", (0,), FORK, {})  # type: ignore[arg-type]
    names = {"study_name": "toy", "sampler": "random"}
    own = OptunaSearch(search, InMemoryStorage(), **names, seed=0, startup_trials=2, target=3, published=False)
    own.resume({}, {})
    assert not own.study.get_trials(deepcopy=False)


@pytest.mark.parametrize("done", [0, 1, 2, 5])
@pytest.mark.parametrize("lost", [False, True], ids=["storage", "storage-lost"])
def test_a_search_goes_on_where_it_was_killed(tmp_path: Path, done: int, lost: bool) -> None:
    """Also where its storage is gone: the ledger has the settings, whose parameters it finds again."""
    open_again: Callable[[], BaseStorage] = lambda: open_storage("journal", tmp_path)  # noqa: E731
    search = make(open_again(), target=8)
    search.resume({}, {})
    told = go_on(search, done)
    running = search.ask()
    assert running is not None
    rows = {**told, running[0]: running[1]}
    storage = InMemoryStorage() if lost else open_again()
    again = make(storage, target=8)
    # A cell of the running one has its row.
    unfinished = again.resume({name: value(one) for name, one in told.items()}, rows)
    assert unfinished == [running]
    again.tell(running[0], value(running[1]))
    everything = {**rows, **go_on(again)}
    assert len(everything) == 8
    assert sum(again.search.start_named(one) is not None for one in everything.values()) == 2, "each start once"
    complete = again.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert sorted(trial.user_attrs["id"] for trial in complete) == sorted(everything)
    for trial in complete:
        assert again.search.settings(trial.params) == everything[trial.user_attrs["id"]]
        assert set(trial.params) == set(FORK.names_of(trial.params))


def test_a_trial_that_was_being_asked_when_the_driver_died_is_ended() -> None:
    """Left with its way alone: a trial without x would else look like one that needs none."""
    storage = InMemoryStorage()
    search = make(storage)
    half = search.study.ask()
    half.suggest_categorical("way", ["left", "right", "none"])
    half.set_user_attr("id", "badnets/toy/0000")
    again = make(storage)
    assert again.resume({}, {}) == []
    assert again.study.get_trials(deepcopy=False)[0].state == TrialState.FAIL


def test_a_study_is_not_continued_under_other_conditions() -> None:
    assert space_hash(FORK.distributions) != space_hash(FORK.distributions, FORK.conditions)
    assert space_hash(FORK.distributions, {}) == space_hash(FORK.distributions), "as before there were any"
    storage = InMemoryStorage()
    make(storage)
    other = Space(FORK.distributions, {**FORK.paper, "y": 0.1}, conditions={"x": FORK.conditions["x"]})
    with pytest.raises(SpecError, match="with another search space"):
        make(storage, other)


def study_of(seed: int = 0, trials: int = 40) -> optuna.Study:
    """A search in which x should be small and y large."""
    study = optuna.create_study(
        directions=["minimize", "maximize"],
        sampler=ConditionalTPE(None, multivariate=True, constant_liar=True, n_startup_trials=12, seed=seed),
    )
    for _ in range(trials):
        trial = study.ask()
        way = trial.suggest_categorical("way", ["left", "right"])
        own = trial.suggest_float("x", 0, 1) if way == "left" else 1 - trial.suggest_float("y", 0, 1)
        study.tell(trial, (own, 1 - own))
    return study


def test_tpe_learns_a_parameter_from_the_settings_that_have_it() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    late = [trial.params for trial in study_of().get_trials(deepcopy=False)[20:]]
    x, y = ([one[name] for one in late if name in one] for name in ("x", "y"))
    assert sum(x) / len(x) < 0.35
    assert sum(y) / len(y) > 0.65


def test_a_running_trial_is_no_observation_of_what_it_does_not_have() -> None:
    """Optuna keeps what was drawn for all groups with the trial, also what its choice then left out."""
    study = study_of()
    sampler = study.sampler
    assert isinstance(sampler, ConditionalTPE)
    trial = study.ask()
    trial.suggest_categorical("way", ["left", "right"])
    running = study.get_trials(deepcopy=False)[-1]
    assert running.state == TrialState.RUNNING
    assert TPESampler._get_params(sampler, running, study).keys() == {"way", "x", "y"}
    assert sampler._get_params(running, study).keys() == {"way"}


def test_the_same_seed_proposes_the_same_in_a_process_with_other_string_hashes() -> None:
    """Optuna takes the groups apart as sets of names."""
    program = (
        "import json; from tests.study.search.test_conditional import *; optuna.logging.set_verbosity(30); "
        "print(json.dumps([trial.params for trial in study_of(3, 24).get_trials(deepcopy=False)]))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("1", "2")
    ]
    assert json.loads(found[0]) == json.loads(found[1])


# -- the family in a study -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("search.sampler=nsga2",),
            "search.space.super_ft: family has parameters that only some settings have, and sampler nsga2 does not "
            "learn those; use random, tpe",
        ),
        (("search.sampler=gp",), "sampler gp does not learn those"),
        (("search.sampler=qmc",), "sampler qmc does not learn those"),
        (("search.startup=qmc",), "no place in a sequence of points; leave search.startup: qmc out"),
        (("defense.super_ft.lr_max3=0.1",), "lr_max3 is fixed by the spec but searched by its space"),
        (("search.ranges.super_ft.steps=[200, 500]",), "leaves out the published 1000, which is trial 0"),
        (("search.ranges.super_ft.lr_max4=[1, 2]",), "unknown parameter search.ranges.super_ft.lr_max4"),
    ],
)
def test_what_the_family_cannot_be_searched_with_is_one_line(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises((SpecError, SettingError)) as caught:
        tiny_spec(*FAMILY, *settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_a_study_of_the_family_begins_with_four_schedules_of_equal_steps_and_its_rows_name_them(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*FAMILY), tmp_path / "trials.jsonl")
    run(driver)
    rows = sorted((row for row in driver.ledger.rows() if row["role"] == "search"), key=lambda row: row["trial"])
    assert len(rows) == 14
    assert [row["published"] for row in rows[:4]] == [True, False, False, False]
    assert [row.get("start") for row in rows[:5]] == [None, "ft_cosine", "ft_constant", "one_cycle", None]
    space = get_space("super_ft", "family")
    of_rows = [{key[6:]: item for key, item in row.items() if key.startswith("param.")} for row in rows]
    assert [space.params_of(one)["steps"] for one in of_rows[:4]] == [1000] * 4
    for one in of_rows:
        if one["phases"] < 3:
            assert "lr_max3" not in one
    # Nothing is left to do, with the storage and without it.
    assert make_driver(tiny_spec(*FAMILY), tmp_path / "trials.jsonl").finished


def test_fronts_of_other_spaces_are_mapped_into_the_family_where_they_fit(tmp_path: Path) -> None:
    other = make_driver(tiny_spec(*AS_PUBLISHED, "search.trials=12"), tmp_path / "trials.jsonl")
    run(other)
    front = fronts(other.ledger.to_frame())
    search = make_driver(tiny_spec(*FAMILY), tmp_path / "own.jsonl").searches[0].search
    found = points_for(search, {"other": front}, 10)
    lengths = 2 * front["param.iterations"].to_numpy(dtype=int)
    assert sorted(one.params["steps"] for one in found) == sorted(length for length in lengths if length >= 200)
    assert all("lr_max3" not in one.params and one.params["phases"] == 2 for one in found)
    with pytest.raises(SpecError, match=r"none of the .* fits into the search space of super_ft: no point has "):
        points_for(search, {"other": front.assign(**{"param.cooldown_lr": 0.1})}, 10)


def test_a_simulation_of_the_family_is_refused_in_one_line(tmp_path: Path) -> None:
    spec = make_spec({**TINY, "search": {"space": {"super_ft": "family"}}, "defense": {}})
    (tmp_path / "study.yaml").write_text(spec.to_yaml())
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    job = driver.next_job()
    assert job is not None
    driver.finish(job, made_up_row(job, driver.plan))
    with pytest.raises(SpecError, match="family has parameters that only some settings have; superft simulate"):
        read_table([tmp_path])


def test_the_recipe_compares_at_equal_steps_over_three_attacks_and_three_seeds_and_says_what_it_costs() -> None:
    head, spec = recipe_text("family").partition("\nname:")[0], load_spec("family")
    plan = make_plan(spec)
    cost = " ".join(head.partition("\n# Cost: ")[2].replace("\n#", "").split())
    assert cost.startswith(f"{len(plan.victims())} victims (clean controls included) and {plan.total_jobs:,} repairs")
    (search,) = plan.searches
    assert len(search.cells) == 3 * 3
    assert search.space.distributions["steps"].single()
    lengths = {one.settings["steps"] for one in plan.baselines if "steps" in one.settings}
    assert lengths == {1000} == {point["steps"] for point in search.space.starting_points().values()}
    assert len(search.space.starting_points()) == 3, "none of them is left out by the ranges"
