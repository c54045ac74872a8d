"""How far a search is has one answer: the driver's, and what `plan`, `show` and the report make of the ledger alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage

from search_spaces.space import Space
from study.overview import plan_summary
from study.plan.jobs import Plan, make_plan
from study.record.files import write_atomically
from study.report.write import write_report
from study.results.finished import Standing
from study.results.left import plan_in, trials_left, unfinished_in_words
from study.run.driver import Driver
from study.spec.schema import StudySpec
from study.watch.words import overview
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

# A space of two points.
FEW = (
    "baselines=[]",
    "search.ranges.super_ft={iterations: [500, 501], lr_base: [0.0003, 0.0003], lr_max1: [0.1, 0.1], "
    "lr_max2: [0.001, 0.001]}",
    "search.trials=12",
)
BUDGET = ("baselines=[]", "search.trials=50", "search.budget_epochs=12")


def costly(job: Job, plan: Plan) -> dict[str, Any]:
    """A row that cost 4 E."""
    return made_up_row(job, plan, train_size=1000, forward_samples=4000, backward_samples=4000)


def answers(folder: Path, spec: StudySpec) -> tuple[bool, bool, bool, bool]:
    """Whether the study is finished, by `run`, `show`, `plan` and the report."""
    driver = make_driver(spec, folder / "trials.jsonl", InMemoryStorage())
    driver.ledger.close()
    shown = overview(folder, called="here")
    planned = plan_summary(spec.model_copy(update={"store": folder / "store"}), folder)
    page = write_report(folder).read_text()
    return (
        driver.finished,
        "finished" in shown.splitlines(),
        "total:     0 trials" in planned,
        "The study is not finished" not in page,
    )


def folder_of(folder: Path, spec: StudySpec, finishes: int | None) -> Path:
    """A study with so many rows of 4 E."""
    folder.mkdir()
    write_atomically(folder / "study.yaml", spec.to_yaml().encode())
    driver = make_driver(spec, folder / "trials.jsonl", InMemoryStorage(), cost=lambda cell, settings: 4.0)
    run(driver, slots=1, finishes=finishes, measure=costly)
    driver.ledger.close()
    return folder


@pytest.mark.parametrize(
    ("changes", "rows"),
    [(FEW, 2), (BUDGET, 3), (("search.trials=3",), 4)],
    ids=["space used up", "budget spent", "as many as asked for"],
)
def test_run_show_plan_and_report_agree_on_when_a_study_is_finished(
    changes: Sequence[str], rows: int, tmp_path: Path
) -> None:
    spec = tiny_spec(*changes)
    assert answers(folder_of(tmp_path / "part", spec, rows - 1), spec) == (False,) * 4
    whole = folder_of(tmp_path / "whole", spec, None)
    assert answers(whole, spec) == (True,) * 4
    assert len((whole / "trials.jsonl").read_text().splitlines()) == rows


def test_a_search_whose_victim_cannot_be_made_is_over_after_one_setting_everywhere(tmp_path: Path) -> None:
    spec, folder = tiny_spec("baselines=[]"), tmp_path
    write_atomically(folder / "study.yaml", spec.to_yaml().encode())
    driver = make_driver(spec, folder / "trials.jsonl")
    driver.break_victims({driver.plan.cells[0].made_from: "victim: boom"})
    run(driver)
    driver.ledger.close()
    assert driver.done == 1
    assert answers(folder, spec) == (True,) * 4


def test_what_is_left_is_said_search_by_search(tmp_path: Path) -> None:
    spec = tiny_spec("attacks=[badnets, blended]", "search.trials=4")
    folder = folder_of(tmp_path / "four", spec, 4)
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    plan = plan_in(folder, spec, rows)
    assert trials_left(plan, rows) == {"badnets/super_ft": 3, "blended/super_ft": 3}
    assert unfinished_in_words(plan, rows) == [
        "badnets / super_ft: 1 of 4 settings",
        "blended / super_ft: 1 of 4 settings",
    ]
    assert unfinished_in_words(plan, rows[:1]) == [
        "blended / none / baseline: 1 to run",
        "badnets / super_ft: not begun",
        "blended / super_ft: not begun",
    ]


def test_a_driver_over_any_part_of_a_ledger_leaves_what_the_ledger_says(tmp_path: Path) -> None:
    """Also where a setting has rows of some of its cells alone."""
    spec = tiny_spec("attacks=[badnets, blended]", "seeds=[0, 1]", "search.per=all", "search.trials=3")
    for finishes in range(17):
        folder = folder_of(tmp_path / str(finishes), spec, finishes)
        driver = make_driver(spec, folder / "trials.jsonl", InMemoryStorage())
        assert +driver.remaining() == trials_left(make_plan(spec), driver.ledger.rows())
        assert driver.finished == (finishes == 16)
        run(driver, finishes=1)
        assert +driver.remaining() == trials_left(make_plan(spec), driver.ledger.rows()), "and after one row more"
        driver.ledger.close()


def test_a_setting_that_was_complete_when_it_was_dropped_is_finished_once() -> None:
    """Its last row is of a cell that no longer counts, and says that it was dropped."""
    plan = make_plan(tiny_spec("seeds=[0, 1, 2, 7]", "search.racing=0.05", "baselines=[]", "search.trials=2"))
    plan = plan.without([cell.whose for search in plan.searches for cell in search.cells if cell.seed in (2, 7)])
    standing = Standing(plan, plan.searches[0])
    for seed in (0, 1, 2):
        place = {"attack": "badnets", "seed": seed, "defense_seed": 0}
        dropped = {"dropped_by": "another", "cells_saved": 1} if seed == 2 else {}
        standing.add({"trial": "one", "status": "ok", **place, **dropped}, 0.0)
    assert (standing.finished, standing.begun, standing.over) == (1, 1, False)


def test_the_size_of_a_space() -> None:
    def size(**distributions: Any) -> float:
        return Space(distributions, {}).size

    assert size(a=FloatDistribution(0.0, 1.0)) == math.inf
    assert size(a=IntDistribution(1, 10**9)) == math.inf
    assert size(a=CategoricalDistribution(["a", "b"]), b=IntDistribution(1, 2)) == 4
    # 1 and 1.0 are one setting.
    assert size(a=CategoricalDistribution([1, 1.0, 2]), b=FloatDistribution(0.0, 1.0, step=0.5)) == 2 * 3
    # Two points, one setting.
    space = Space({"a": IntDistribution(1, 2), "b": IntDistribution(1, 3)}, {}, lambda params: {"b": params["b"]})
    assert space.size == 3


def test_a_space_of_a_plug_in_is_counted_too(tmp_path: Path) -> None:
    """What is counted is the plan's own space, wherever it came from."""
    plan = make_plan(tiny_spec("baselines=[]", "search.trials=12"))
    small = Space({"kind": CategoricalDistribution(["a", "b"])}, {"kind": "a"})
    plan = dataclasses.replace(plan, searches=(dataclasses.replace(plan.searches[0], space=small),))
    assert plan.total_jobs == 2


def test_the_driver_ends_with_the_space(tmp_path: Path) -> None:
    driver: Driver = make_driver(tiny_spec(*FEW), tmp_path / "trials.jsonl")
    assert driver.total == 2
    assert run(driver) == 2
    assert driver.finished
    assert not driver.has_work()
