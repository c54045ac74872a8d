"""What is left of a study is counted from its rows, and costed per defense and attack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from optuna.storages import InMemoryStorage

from study.plan.costs import victim_cost, victims_cost, work_left
from study.plan.forecast import plan_lines
from study.plan.jobs import make_plan
from study.record.cost import epochs
from study.record.ended import read_ended
from study.record.ledger import Ledger
from study.results.left import trials_left
from tests.study.tiny import TINY, make_driver, run, tiny_spec
from trainables.data.images import Dataset
from trainables.data.load import load_dataset, outline
from trainables.storage.store import Store
from trainables.workbench import Workbench

TWO = ("attacks=[badnets, blended]", "seeds=[0, 7]", "baselines=[none, ft]", "search.trials=4")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", image_size=8)


def test_work_is_told_for_every_search_and_baseline(digits: Dataset) -> None:
    plan = make_plan(tiny_spec(*TWO))
    work = {item.label: item for item in work_left(plan, digits)}
    assert {label: item.trials for label, item in work.items()} == dict(plan.jobs_by_label())
    assert work["badnets/none/baseline"].epochs == 0
    search = work["blended/super_ft"]
    assert (search.attack, search.defense, search.role, search.trials) == ("blended", "super_ft", "search", 8)
    assert search.epochs == pytest.approx(8 * search.each)


def test_a_budget_bounds_the_cost_of_a_search(digits: Dataset) -> None:
    plan = make_plan(tiny_spec("search.trials=100", "search.budget_epochs=5", "seeds=[0, 1]", "baselines=[]"))
    (search,) = work_left(plan, digits)
    one = search.each * 2
    assert 10 - one < search.epochs <= 10, "5 E on each of two cells, and no setting that would overspend"
    assert search.trials == 2 * round(search.epochs / one)


def test_what_is_done_is_neither_planned_nor_costed(digits: Dataset, tmp_path: Path) -> None:
    spec = tiny_spec(*TWO)
    driver = make_driver(spec, tmp_path / "trials.jsonl", InMemoryStorage())
    run(driver, slots=1, finishes=11)
    left = trials_left(driver.plan, driver.ledger.rows())
    assert left == +driver.remaining()
    assert left.total() == driver.total - 11
    assert "badnets/none/baseline" not in left
    assert {item.label for item in work_left(driver.plan, digits, left)} == set(left)
    lines = plan_lines(driver.plan, digits, None, left, driver.plan.victims()[:1], done=11)
    assert lines[2] == "done:      11 trials; what follows is what is left"
    assert lines[3].startswith("victims:   1 of 6 are missing (clean controls included), ")
    assert any(line.startswith(f"total:     {left.total()} trials") for line in lines)
    run(driver)
    assert trials_left(driver.plan, driver.ledger.rows()) == {}


def test_a_search_that_spent_its_budget_or_used_up_its_space_has_nothing_left(tmp_path: Path) -> None:
    spent = tiny_spec("search.budget_epochs=2.5", "search.trials=50", "baselines=[]")
    driver = make_driver(spent, tmp_path / "spent.jsonl", InMemoryStorage(), cost=lambda cell, settings: 1.0)
    run(driver, measure=lambda job, plan: _costly(job, plan))
    assert driver.finished
    assert len(driver.ledger) == 2
    assert trials_left(driver.plan, driver.ledger.rows(), read_ended(tmp_path)) == {}


def _costly(job: object, plan: object) -> dict[str, object]:
    from tests.study.tiny import made_up_row

    return made_up_row(job, plan, train_size=100, forward_samples=100, backward_samples=100, input_backward_samples=0)  # type: ignore[arg-type]


def test_a_data_set_that_is_not_here_is_planned_from_its_sizes(digits: Dataset) -> None:
    spec = tiny_spec("dataset=cifar10", "image_size=", "width=8")
    stand_in = outline("cifar10")
    assert stand_in is not None
    assert (len(stand_in.train), len(stand_in.test), stand_in.num_classes) == (50_000, 10_000, 10)
    assert stand_in.train.images.untyped_storage().nbytes() == 1
    plan = make_plan(spec)
    assert all(item.epochs >= 0 for item in work_left(plan, stand_in))
    assert victims_cost(plan.victims(), stand_in) == pytest.approx(2 * TINY["victim"]["epochs"], rel=0.01)
    assert outline("folder:/nowhere") is None
    assert outline("digits") is None, "it is always here"


def test_victims_cost_what_their_attacks_count_and_what_they_share_counts_once(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = tiny_spec(
        "attacks=[grond, sbl, badencoder]",
        "sweep={attack.sbl.variant: [naive, anchoring]}",
        "victim.epochs=1",
        "attack.grond.upgd_steps=3",
        "attack.badencoder.pretrain_epochs=1",
        "attack.badencoder.head_epochs=2",
        "attack.badencoder.inject_epochs=1",
        "attack.badencoder.reference_must_be_right=false",
    )
    plan, bench = make_plan(spec), Workbench(Store(tmp_path), torch.device("cpu"))
    dataset = bench.dataset(plan.cells[0].data)
    counted, apart = 0.0, 0.0
    for cell in plan.victims():
        facts = bench.victim(cell).facts
        work, n = facts["counters"], facts["dataset"]["train_size"]
        counted += epochs(work["forward_samples"], work["backward_samples"], work["input_backward_samples"], n)
        apart += victim_cost(cell, dataset)
    assert victims_cost(plan.victims(), dataset) == pytest.approx(counted)
    # Of two variants the second finds the backdoor learned (2 E), and BadEncoder its control's encoder trained (2 E).
    assert counted < apart - 3
    assert counted > 1.5 * len(plan.victims()), "1 E each by the recipe alone"


def test_the_ledger_of_a_study_that_was_never_begun_leaves_everything(tmp_path: Path) -> None:
    plan = make_plan(tiny_spec(*TWO))
    assert trials_left(plan, Ledger.read(tmp_path / "none.jsonl").rows()) == plan.jobs_by_label()
