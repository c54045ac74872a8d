"""A search begins with the fronts of other studies, with quasi-random points, or keeps an accuracy floor."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from scipy.stats import qmc

from search_spaces.space import Space, get_space
from study.plan.jobs import Plan, Search, make_plan
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.results.scores import accuracy_before, accuracy_drop
from study.run.driver import Driver
from study.search.optuna_search import OptunaSearch, open_searches
from study.search.trials import CONSTRAINT
from study.search.warm_start import WarmPoint, points_for, warm_points
from study.spec.yaml_io import SpecError
from tests.study.rows import make_row
from tests.study.simulate.made_up import finished_study
from tests.study.tiny import AS_PUBLISHED, made_up_row, run, tiny_spec
from trainables.job import Job

LINE = Space({"x": FloatDistribution(0.0, 1.0), "k": IntDistribution(1, 64)}, {"x": 0.5, "k": 8})


def of(space: Space) -> Search:
    return Search("badnets/toy", "toy", (0,), space, {})  # type: ignore[arg-type]


def opened(storage: BaseStorage, sampler: str = "tpe", count: int = 4, target: int = 12, **more: Any) -> OptunaSearch:
    """``count``: of start-up trials."""
    options = {"study_name": "toy", "sampler": sampler, "seed": 0, "startup_trials": count, "target": target, **more}
    return OptunaSearch(of(LINE), storage, **options)


def make(storage: BaseStorage, *arguments: Any, **options: Any) -> OptunaSearch:
    """A search that begins."""
    search = opened(storage, *arguments, **options)
    search.resume({}, {})
    return search


def tell_all(search: OptunaSearch, drop: Callable[[float], float] | None = None) -> list[dict[str, Any]]:
    """Ask and tell until there is no more; the settings. More x: less ASR and less accuracy; k does nothing."""
    asked = []
    while (one := search.ask()) is not None:
        x = one[1]["x"]
        search.tell(one[0], (1 - x, 1 - x / 2), {} if drop is None else {"accuracy_drop": drop(x)})
        asked.append(one[1])
    return asked


# -- quasi-random points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_a_quasi_random_start_is_spread_more_evenly_than_a_random_one(sampler: str) -> None:
    """Discrepancy of the 16 settings behind the published point: a scrambled Sobol sequence's is several times less."""
    found = {}
    for startup in ("random", "qmc"):
        asked = tell_all(make(InMemoryStorage(), sampler, count=17, target=17, startup=startup))[1:]
        found[startup] = qmc.discrepancy(np.array([[one["x"], (one["k"] - 0.5) / 64] for one in asked]))
    assert found["qmc"] < 0.5 * found["random"]


def test_the_sequence_ends_with_the_start_and_no_point_given_by_hand_takes_one_of_it() -> None:
    warm = [WarmPoint({"x": 0.9, "k": 3}, "other")]
    storage = InMemoryStorage()
    search = make(storage, count=6, startup="qmc", warm=warm)
    tell_all(search)
    attributes = storage.get_study_system_attrs(storage.get_study_id_from_name(search.study.study_name))
    (last,) = (value for key, value in attributes.items() if key.startswith("qmc:"))
    assert last + 1 == 6 - 2  # besides the published point and the warm one


# -- fronts of other studies ------------------------------------------------------------------------------------------


def front(*settings: dict[str, Any], defense: str = "toy") -> pd.DataFrame:
    return pd.DataFrame([{"defense": defense, **{f"param.{k}": v for k, v in one.items()}} for one in settings])


def test_warm_points_come_after_the_published_one_and_are_marked() -> None:
    warm = [WarmPoint({"x": 0.9, "k": 3}, "runs/a"), WarmPoint({"x": 0.5, "k": 8}, "runs/a")]
    search = make(InMemoryStorage(), warm=warm)
    asked = tell_all(search)
    assert asked[:2] == [{"x": 0.5, "k": 8}, {"x": 0.9, "k": 3}]  # the second warm point is the published one
    assert search.origins == {"badnets/toy/0001": "runs/a"}


def test_a_search_that_has_begun_is_given_none_again(tmp_path: Path) -> None:
    warm = [WarmPoint({"x": 0.9, "k": 3}, "runs/a"), WarmPoint({"x": 0.8, "k": 3}, "runs/b")]
    storage = open_storage("journal", tmp_path)
    make(storage, warm=warm)  # killed before its first ask: they wait in the storage
    search = make(open_storage("journal", tmp_path), warm=warm)
    asked = tell_all(search)
    assert [one["x"] for one in asked[:3]] == [0.5, 0.9, 0.8]
    assert len({one["x"] for one in asked}) == 12
    assert search.origins == {"badnets/toy/0001": "runs/a", "badnets/toy/0002": "runs/b"}


def test_warm_points_and_their_origins_outlive_the_storage() -> None:
    warm = [WarmPoint({"x": place / 10, "k": 3}, "runs/a") for place in (7, 8, 9)]
    search = make(InMemoryStorage(), warm=warm)
    asked = dict(one for _ in range(2) if (one := search.ask()) is not None)
    again = opened(InMemoryStorage(), warm=warm)  # the storage was lost, the ledger is there
    again.resume(dict.fromkeys(asked, (0.5, 0.5)), asked)
    left = [one[1]["x"] for _ in range(2) if (one := again.ask()) is not None]
    assert left == [0.8, 0.9]
    assert [again.origins.get(f"badnets/toy/{number:04d}") for number in range(4)] == [None, *["runs/a"] * 3]


def test_points_are_taken_evenly_from_fronts_and_along_them() -> None:
    long = front(*({"x": place / 10, "k": 1} for place in range(11)))
    short = front({"x": 0.55, "k": 2})
    points = points_for(of(LINE), {"a": long, "b": short}, most=6)
    assert [(one.params["x"], one.origin) for one in points] == [(0.0, "a"), (0.5, "a"), (1.0, "a"), (0.55, "b")]


def test_whole_numbers_of_a_table_and_bounds_of_a_ratio_are_mapped() -> None:
    (point,) = points_for(of(LINE), {"a": front({"x": 1.0 + 1e-12, "k": 7.0})}, most=3)
    assert point.params == {"x": 1.0, "k": 7}
    assert isinstance(point.params["k"], int)


def test_settings_outside_the_space_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        points = points_for(of(LINE), {"runs/a": front({"x": 0.2, "k": 1}, {"x": 3.0, "k": 1})}, most=3)
    assert [point.params["x"] for point in points] == [0.2]
    assert "1 of 2 settings on the front of runs/a are left out: x = 3.0 lies outside [0, 1]" in caplog.text


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (front({"x": 3.0, "k": 1}), ("none of the 1 settings", "runs/a", "x = 3.0", "[0, 1]")),
        (front({"y": 0.5, "k": 1}), ("it has no x",)),
        (front({"x": 0.1, "k": "many"}), ("k = 'many'", "[1, 64]")),
        (front({"x": 0.1, "k": 1}, defense="other"), ("runs/a has no front of toy", "other")),
    ],
)
def test_a_study_of_another_space_is_refused(given: pd.DataFrame, named: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        points_for(of(LINE), {"runs/a": given}, most=3)
    assert all(text in str(caught.value) for text in named), caught.value


def test_a_choice_that_is_not_there_is_refused() -> None:
    kind = Space({"kind": CategoricalDistribution(["a", "b"])}, {"kind": "a"})
    with pytest.raises(SpecError, match=r"kind = 'c' lies outside \['a', 'b'\]"):
        points_for(of(kind), {"runs/a": front({"kind": "c"})}, most=3)


def test_a_study_begins_with_the_front_of_another_and_its_rows_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    other = finished_study(tmp_path / "other", trials=12)
    spec = tiny_spec("baselines=[]", f"search.warm_start=[{other}]", "search.startup_trials=3", *AS_PUBLISHED)
    plan = make_plan(spec)
    warm = warm_points(plan)
    assert 0 < len(warm["badnets/super_ft"]) <= 3
    driver = Driver(plan, Ledger(tmp_path / "trials.jsonl"), open_searches(plan, InMemoryStorage(), warm))
    run(driver, slots=2)
    marked = [row for row in driver.ledger.rows() if "warm_start" in row]
    assert {row["warm_start"] for row in marked} == {str(other)}
    assert [row["param.lr_max1"] for row in marked] == [one.params["lr_max1"] for one in warm["badnets/super_ft"]]
    assert all(row["published"] or row in marked for row in driver.ledger.rows()[:2])


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"search.warm_start: .* is no study folder"):
        warm_points(make_plan(tiny_spec(f"search.warm_start=[{tmp_path}]")))


def test_a_folder_named_twice_is_refused() -> None:
    with pytest.raises(SpecError, match=r"search.warm_start: names 'runs/a' more than once"):
        tiny_spec("search.warm_start=[runs/a, runs/a]")


# -- accuracy floor ---------------------------------------------------------------------------------------------------


def test_the_drop_is_that_of_the_search_half_and_a_collapsed_model_gives_up_all() -> None:
    row = make_row(clean_accuracy=0.9, clean_accuracy_before=0.95, clean_accuracy_before_report=0.93)
    assert accuracy_before(row) == pytest.approx(0.97)  # the halves are of one size
    assert accuracy_drop([row]) == pytest.approx(0.07)
    assert accuracy_drop([row, make_row(seed=1, collapsed=True)]) == pytest.approx((0.07 + 0.985) / 2)
    assert accuracy_drop([make_row(clean_accuracy_before=None)]) is None
    assert accuracy_drop([make_row(status="failed")]) is None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", pytest.param("gp", marks=pytest.mark.slow)])
def test_a_sampler_keeps_a_floor_more_often_than_without(sampler: str) -> None:
    """x costs accuracy x / 2: a floor of 0.1 is kept up to x = 0.2, a fifth of the space."""
    trials = 24 if sampler == "gp" else 60
    kept = {}
    for floor in (None, 0.1):
        search = make(InMemoryStorage(), sampler, count=8, target=trials, accuracy_floor=floor)
        asked = tell_all(search, drop=lambda x: x / 2)
        kept[floor] = sum(one["x"] <= 0.2 for one in asked[trials // 2 :]) / len(asked[trials // 2 :])
    assert kept[0.1] > 1.5 * kept[None]
    assert kept[0.1] > 0.4


def test_what_a_trial_breaks_is_its_constraint_also_after_the_storage_is_gone(tmp_path: Path) -> None:
    spec = tiny_spec("search.accuracy_floor=0.02", "baselines=[]", *AS_PUBLISHED)

    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        return made_up_row(job, plan, clean_accuracy_before=0.97)

    def constraints() -> list[float]:
        plan = make_plan(spec)
        driver = Driver(plan, Ledger(tmp_path / "trials.jsonl"), open_searches(plan, InMemoryStorage()))
        run(driver, measure=measure)
        driver.ledger.close()
        trials = driver.searches[0].study.get_trials(states=(TrialState.COMPLETE,))
        assert [trial.constraints["accuracy_floor"] for trial in trials] == [t.system_attrs[CONSTRAINT] for t in trials]
        return [trial.system_attrs[CONSTRAINT] for trial in trials]

    told = constraints()
    rows = Ledger.read(tmp_path / "trials.jsonl").rows()
    assert told == pytest.approx([0.97 - row["clean_accuracy_search"] - 0.02 for row in rows])
    assert constraints() == pytest.approx(told)


@pytest.mark.parametrize(
    ("assignments", "named"),
    [
        (("search.accuracy_floor=-0.01",), ("search.accuracy_floor", "greater than or equal to 0", "-0.01")),
        (("search.accuracy_floor=2",), ("search.accuracy_floor", "less than 1", "2")),
        (
            ("search.sampler=random", "search.accuracy_floor=0.02"),
            ("accuracy_floor", "sampler random", "gp, nsga2, tpe"),
        ),
        (("search.startup=sobol",), ("search.startup", "'random' or 'qmc'", "sobol")),
    ],
)
def test_bad_options_are_one_line(assignments: tuple[str, ...], named: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        tiny_spec(*assignments)
    assert "\n" not in str(caught.value)
    assert all(text in str(caught.value) for text in named), caught.value


def test_a_choice_of_nothing_is_taken_over_from_another_study() -> None:
    """A front's table shows no None; of I-BAU it is the published bound of the perturbation."""
    space = get_space("ibau")
    search = Search("badnets/ibau", "ibau", (0,), space, {})  # type: ignore[arg-type]
    settings = {**space.to_settings(space.paper_params()), "norm_bound": None}
    front = pd.DataFrame([{"defense": "ibau", **{f"param.{name}": value for name, value in settings.items()}}])
    (point,) = points_for(search, {"other": front}, 4)
    assert point.params["norm_bound"] is None
