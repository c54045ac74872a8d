"""Equal compute instead of equal trials: each search may spend the same, and never more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from study.plan.jobs import Plan, make_plan
from study.record.cost import Bill, epochs, row_epochs
from study.record.ended import read_ended
from study.record.ledger import Ledger
from study.results.finished import BEYOND_BUDGET
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.spec.load import make_spec
from tests.study.tiny import AS_PUBLISHED, TINY, made_up_row, make_driver, tiny_spec
from tests.study.tiny import run as run_all
from trainables.job import Cell, Job

N = 1000


def measured(job: Job, plan: Plan, *, each: float) -> dict[str, Any]:
    """A row that cost ``each`` E: forward and backward samples of so many epochs."""
    samples = round(each * N)
    return made_up_row(job, plan, train_size=N, forward_samples=samples, backward_samples=samples)


def run(driver: Driver, slots: int, costs: dict[str, float], planned: float = 1.0) -> None:
    """Run to the end; settings cost what they are planned to, times ``1 / planned``."""
    running: list[Job] = []
    while True:
        while len(running) < slots and (job := driver.next_job()) is not None:
            running.append(job)
        if not running:
            assert not driver.waits(), "nothing runs, yet the driver waits for something"
            return
        job = running.pop(0)
        driver.finish(job, measured(job, driver.plan, each=costs[job.cell.label] / planned))


def planned(costs: Mapping[str, float]) -> Callable[[Cell, Mapping[str, Any]], float]:
    return lambda cell, settings: costs[cell.label]


def counts(driver: Driver) -> dict[str, int]:
    """Settings that each search asked for."""
    return {search.search.defense: search.asked for search in driver.searches}


def test_one_epoch_is_three_forwards_of_the_training_set() -> None:
    assert epochs(N, N, 0, N) == 1.0
    assert epochs(3 * N, 0, 0, N) == 1.0
    assert (
        row_epochs({"train_size": N, "forward_samples": N, "backward_samples": 0, "input_backward_samples": N}) == 1.0
    )
    assert row_epochs({"train_size": None, "status": "failed"}) == 0.0


@pytest.mark.parametrize("slots", [1, 4])
def test_equal_compute_gives_cheap_settings_more_trials(slots: int, tmp_path: Path) -> None:
    spec = tiny_spec("defenses=[super_ft, ft]", "search.trials=50", "search.budget_epochs=12", "baselines=[]")
    costs = {"super_ft": 4.0, "ft": 1.0}
    driver = make_driver(spec, tmp_path / "trials.jsonl", cost=planned(costs))
    run(driver, slots, costs)
    assert counts(driver) == {"super_ft": 3, "ft": 12}
    assert driver.finished
    assert driver.total == driver.done == 15
    assert read_ended(tmp_path) == {"badnets/super_ft": 3, "badnets/ft": 12}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_setting_that_would_overspend_is_not_started(slots: int, tmp_path: Path) -> None:
    def cost(cell: Cell, settings: Mapping[str, Any]) -> float:
        return float(settings["iterations"]) / 100  # 0.2 to 5 E

    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        return measured(job, plan, each=cost(job.cell, job.settings))

    spec = tiny_spec("search.budget_epochs=20", "search.trials=200", "baselines=[]")
    driver = make_driver(spec, tmp_path / "trials.jsonl", cost=cost)
    run_all(driver, slots, measure=measure)
    spent = sum(row["charged_epochs"] for row in driver.ledger.rows())
    assert 18 < spent <= 20, "and what is left is used as far as something shorter is proposed"
    assert driver.finished
    states = [trial.state.name for trial in driver.searches[0].study.trials if "left_out" in trial.user_attrs]
    assert states
    assert set(states) == {"FAIL"}, "the sampler is told nothing of what was not run"


def test_what_a_setting_did_not_spend_is_spent_by_others(tmp_path: Path) -> None:
    """A defense that may stop early plans the most that it can cost: here twice what it does."""
    spec = tiny_spec("search.budget_epochs=12", "search.trials=50", "baselines=[]")
    driver = make_driver(spec, tmp_path / "trials.jsonl", cost=planned({"super_ft": 4.0}))
    run(driver, 3, {"super_ft": 4.0}, planned=2.0)
    assert counts(driver) == {"super_ft": 5}, "five of 2 E leave 2 E: too little for one that may cost 4"


def test_the_published_point_runs_beside_a_budget_that_it_exceeds(tmp_path: Path) -> None:
    def cost(cell: Cell, settings: Mapping[str, Any]) -> float:
        return 80.0 if settings["iterations"] == 500 else 1.0

    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        return measured(job, plan, each=cost(job.cell, job.settings))

    spec = tiny_spec("search.budget_epochs=3", "search.trials=50", "baselines=[]", *AS_PUBLISHED)
    driver = make_driver(spec, tmp_path / "trials.jsonl", cost=cost)
    run_all(driver, slots=1, measure=measure)
    rows = driver.ledger.rows()
    assert [row["published"] for row in rows] == [True, False, False, False]
    assert [BEYOND_BUDGET in row.get("flags", ()) for row in rows] == [True, False, False, False]
    again = make_driver(spec, tmp_path / "trials.jsonl", cost=cost)
    assert again.finished
    assert not again.has_work(), "the rows say that the first was not counted"


def test_a_published_point_within_the_budget_is_counted(tmp_path: Path) -> None:
    driver = make_driver(
        tiny_spec("search.budget_epochs=3", "search.trials=50", "baselines=[]", *AS_PUBLISHED),
        tmp_path / "trials.jsonl",
        cost=planned({"super_ft": 1.0}),
    )
    run(driver, 1, {"super_ft": 1.0})
    assert counts(driver) == {"super_ft": 3}
    assert not any(BEYOND_BUDGET in row.get("flags", ()) for row in driver.ledger.rows())


def test_a_budget_has_no_number_of_trials_beside_it_but_a_guard() -> None:
    assert make_spec(TINY | {"search": {"budget_epochs": 1}}).search.trials == 1000
    assert make_spec(TINY | {"search": {}}).search.trials == 32


def test_the_guard_bounds_a_defense_that_costs_nothing(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec("search.trials=6", "search.budget_epochs=1"), tmp_path / "trials.jsonl")
    run(driver, 2, {"super_ft": 0.0, "none": 0.0})
    assert counts(driver) == {"super_ft": 6}
    assert read_ended(tmp_path) == {}, "it may go on under a larger guard"


def test_a_search_with_a_budget_needs_to_know_costs(tmp_path: Path) -> None:
    plan = make_plan(tiny_spec("search.budget_epochs=1"))
    with pytest.raises(ValueError, match="needs to know what a setting costs"):
        Driver(plan, Ledger(tmp_path / "trials.jsonl"), open_searches(plan, InMemoryStorage()))


def test_a_continued_search_remembers_what_it_spent(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    spec, cost = tiny_spec("search.trials=50", "search.budget_epochs=12", "baselines=[]"), planned({"super_ft": 4.0})
    first = make_driver(spec, tmp_path / "trials.jsonl", storage, cost)
    for _ in range(2):
        job = first.next_job()
        assert job is not None
        first.finish(job, measured(job, first.plan, each=4.0))
    first.ledger.close()
    second = make_driver(spec, tmp_path / "trials.jsonl", storage, cost)
    run(second, 1, {"super_ft": 4.0})
    assert counts(second) == {"super_ft": 3}
    third = make_driver(spec, tmp_path / "trials.jsonl", storage, cost)
    before = len(third.searches[0].study.trials)
    assert third.finished
    assert not third.has_work()
    assert len(third.searches[0].study.trials) == before, "a finished search asks for nothing"


def test_settings_that_were_running_when_a_driver_died_hold_their_cost_again(tmp_path: Path) -> None:
    storage, cost = InMemoryStorage(), planned({"super_ft": 4.0})
    spec = tiny_spec("search.trials=50", "search.budget_epochs=12", "baselines=[]")
    first = make_driver(spec, tmp_path / "trials.jsonl", storage, cost)
    assert first.next_job() is not None
    assert first.next_job() is not None
    first.ledger.close()
    second = make_driver(spec, tmp_path / "trials.jsonl", storage, cost)
    run(second, 3, {"super_ft": 4.0})
    assert counts(second) == {"super_ft": 3}


def test_ready_made_work_is_charged_once_to_every_search_that_uses_it() -> None:
    own = {"train_size": N, "forward_samples": 3 * N, "backward_samples": 0, "input_backward_samples": 0}
    uses = {**own, "shared_work": json.dumps({"made": [], "reused": {"model-a": [3 * N, 3 * N, 0]}})}
    makes = {**own, "shared_work": json.dumps({"made": ["model-a"], "reused": {}})}
    somebody_was_before_it, it_was_first = Bill(), Bill()
    assert [somebody_was_before_it.charge(row) for row in (own, uses, uses)] == [1.0, 4.0, 1.0]
    assert [it_was_first.charge(row) for row in (makes, uses)] == [1.0, 1.0]


def test_a_user_that_ends_before_the_maker_does_not_make_the_work_paid_twice() -> None:
    own = {"train_size": N, "forward_samples": 3 * N, "backward_samples": 0, "input_backward_samples": 0}
    uses = {**own, "shared_work": json.dumps({"made": [], "reused": {"model-a": [3 * N, 0, 0]}})}
    makes = {**own, "forward_samples": 6 * N, "shared_work": json.dumps({"made": ["model-a"], "reused": {}})}
    for rows in ((makes, uses, uses), (uses, makes, uses), (uses, uses, makes)):
        bill = Bill()
        assert sum(map(bill.charge, rows)) == 4.0


def test_rows_say_what_they_were_charged_and_a_restart_charges_no_more(tmp_path: Path) -> None:
    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        shared = {"made": [], "reused": {"features-x": [3 * N, 0, 0]}}
        work = {"forward_samples": 3 * N, "backward_samples": 0, "train_size": N}
        return made_up_row(job, plan, shared_work=json.dumps(shared), **work)

    spec = tiny_spec("search.trials=4", "baselines=[]")
    storage = InMemoryStorage()
    run_all(make_driver(spec, tmp_path / "trials.jsonl", storage), slots=1, finishes=2, measure=measure)
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage)
    run_all(driver, slots=1, measure=measure)
    assert [row["charged_epochs"] for row in driver.ledger.rows()] == [2.0, 1.0, 1.0, 1.0]


def test_collapsed_model_is_the_worst_point_to_the_search(tmp_path: Path) -> None:
    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        return made_up_row(job, plan, asr_search=0.0, clean_accuracy_search=0.1, collapsed=True)

    driver = make_driver(tiny_spec("search.trials=2", "baselines=[]"), tmp_path / "trials.jsonl")
    run_all(driver, measure=measure)
    (search,) = driver.searches
    assert [trial.values for trial in search.study.trials] == [[1.0, 0.0]] * 2


def test_victims_without_a_backdoor_make_no_front_in_the_progress(tmp_path: Path) -> None:
    def measure(job: Job, plan: Plan) -> dict[str, Any]:
        return made_up_row(job, plan, status="backdoor_not_implanted")

    driver = make_driver(tiny_spec("search.trials=2", "baselines=[]"), tmp_path / "trials.jsonl")
    run_all(driver, measure=measure)
    assert [len(front) for front in driver.fronts.values()] == [0]


def test_a_search_whose_missing_cell_turns_out_to_count_for_nothing_goes_on(tmp_path: Path) -> None:
    """One of two cells of a setting was measured; the other's victim is found to hold no backdoor."""
    spec, storage = tiny_spec("seeds=[0, 7]", "search.budget_epochs=6", "baselines=[]"), InMemoryStorage()
    costs = dict.fromkeys(("super_ft",), 2.0)
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage, planned(costs))
    job = driver.next_job()
    while job is not None and job.cell.seed != 0:
        job = driver.next_job()
    assert job is not None
    driver.finish(job, measured(job, driver.plan, each=2.0))
    driver.ledger.close()
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage, planned(costs))
    (absent,) = {cell.whose for search in driver.plan.searches for cell in search.cells if cell.seed == 7}
    driver.leave_out([absent])
    run(driver, 1, costs)
    assert driver.finished
    assert driver.done == 3, "6 E at 2 E each"
