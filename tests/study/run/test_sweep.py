"""A study over all combinations of a sweep: its work, its costs, and going on after it was stopped anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage

from study.overview import plan_summary
from study.plan.costs import curves_cost, trial_cost, victims_cost, work_left
from study.plan.jobs import load_data, make_plan, plan_on, prepare
from study.record.curves import curve_file, read_curves, write_curve
from study.record.folder import driving
from study.record.victims import Judged, absent_in_words, each_once
from study.run.driver import Driver
from study.run.tune_detectors import DetectorSearch
from study.search.optuna_search import open_searches
from study.spec.sweep import combinations
from study.watch.words import overview
from tests.study.tiny import made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

SWEEP = "sweep={clean_fraction: [0.1, 0.5], victim.poison_rate: [0.05, 0.1]}"
POINTS = [{"step": 0, "passes": 0.0, "kept": True, "asr": 1.0, "asr_report": 1.0, "clean_accuracy_report": 0.9}]


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_every_combination_has_the_jobs_of_its_own_study() -> None:
    spec = tiny_spec(SWEEP, "attacks=[badnets, blended]", "baselines=[none, ft]")
    plan = make_plan(spec)
    assert len({job.label for job in plan.baselines}) == len(plan.baselines) == 4 * 2 * 2
    assert len({search.label for search in plan.searches}) == len(plan.searches) == 4 * 2
    for part in combinations(spec):
        alone = make_plan(part.spec)
        own = [job for job in plan.baselines if job.cell.combination == part.name]
        assert [job.label for job in own] == [f"{part.name}/{job.label}" for job in alone.baselines]
        assert [(job.cell.victim, job.cell.clean_fraction, job.settings) for job in own] == [
            (job.cell.victim, job.cell.clean_fraction, job.settings) for job in alone.baselines
        ]
        assert {json.loads(job.cell.swept)["clean_fraction"] for job in own} == {part.spec.clean_fraction}


def test_victims_are_shared_where_nothing_that_decides_them_is_swept() -> None:
    alone = len(make_plan(tiny_spec()).victims())
    assert len(make_plan(tiny_spec("sweep={clean_fraction: [0.1, 0.2, 0.5]}")).victims()) == alone
    # Two poison rates: two victims, and one clean control for both.
    assert len(make_plan(tiny_spec(SWEEP)).victims()) == alone + 1


def test_a_sweep_costs_what_its_studies_cost_but_for_shared_victims() -> None:
    spec = tiny_spec("sweep={image_size: [8, 16], clean_fraction: [0.1, 0.5]}", "baselines=[none, ft]")
    plan, data, upstream = prepare(spec)
    work = work_left(plan, data)
    for part in combinations(spec):
        alone, own, _ = prepare(part.spec)
        parts = [item for item in work if item.combination == part.name]
        assert sum(item.epochs for item in parts) == pytest.approx(sum(item.epochs for item in work_left(alone, own)))
    small, large = (prepare(part.spec) for part in combinations(spec)[::2])
    assert victims_cost(plan.victims(), data, upstream) == pytest.approx(
        sum(victims_cost(one.victims(), own) for one, own, _ in (small, large))
    )
    assert len(plan.victims()) == 4
    assert {cell.made_from[1].image_size for cell in plan.cells} == {8, 16}


def test_the_plan_says_combinations_data_sets_and_curves(tmp_path: Path) -> None:
    spec = tiny_spec(
        "sweep={image_size: [8, 16], clean_fraction: [0.1, 0.5]}", "curve.every=20", f"store={tmp_path / 'store'}"
    )
    said = plan_summary(spec, tmp_path / "none")
    assert "study tiny: 4 combinations of image_size (8, 16) and clean_fraction (0.1, 0.5)" in said
    assert said.count("data:      digits (") == 2
    assert "image_size-16--clean_fraction-0.5" in said
    points, cost = curves_cost(make_plan(spec), load_data(spec)[0])
    assert f"curves:    {points} measurements along the repairs, {cost:.1f} E" in said
    # `none` is measured at step 0; of 100 steps every 20th, and step 0, of each of 4 settings.
    assert points == 4 * (1 + 4 * (1 + 100 // 20))


def test_names_of_classes_are_looked_up_in_each_data_set() -> None:
    spec = tiny_spec("sweep={image_size: [8, 16]}", "attack.badnets.target_label=3")
    assert {cell.victim.make_attack().target_label for cell in plan_on(spec, load_data(spec)[0]).cells} == {3}


def test_a_sweep_stopped_anywhere_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    spec = tiny_spec(SWEEP, "attacks=[badnets, blended]", "search.trials=3", "search.startup_trials=1")
    whole = make_driver(spec, tmp_path / "whole.jsonl")
    total = run(whole)
    assert total == whole.total == 4 * 2 * (1 + 3)
    for stop in (1, 9, 17, 30):
        path, storage = tmp_path / f"{stop}.jsonl", InMemoryStorage()
        first = make_driver(spec, path, storage)
        run(first, finishes=stop)
        first.ledger.close()
        again = make_driver(spec, path, storage)
        assert (again.done, again.total) == (stop, total)
        assert run(again) == total - stop
        keys = [(row["trial"], row["attack"], row["seed"]) for row in again.ledger.rows()]
        assert len(set(keys)) == len(keys) == total
        assert {row["combination"] for row in again.ledger.rows()} == {part.name for part in combinations(spec)}


def test_a_victim_without_backdoor_is_missing_in_its_own_combinations_alone(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(SWEEP), tmp_path / "trials.jsonl")
    weak = [part.name for part in combinations(driver.plan.spec) if part.values["victim.poison_rate"] == 0.05]
    total = driver.total
    driver.leave_out({("badnets", 0, name) for name in weak})
    assert driver.total == total / 2
    run(driver)
    assert {row["combination"] for row in driver.ledger.rows()}.isdisjoint(weak)


def test_a_victim_that_combinations_share_is_counted_once() -> None:
    shared = [Judged("badnets", 0, "badnets-x", "ASR 0.1 is below 0.8", 0.1, 0.0, 0.9, name) for name in ("a", "b")]
    other = Judged("badnets", 0, "badnets-y", None, 0.9, 0.0, 0.9, "c")
    judged = {one.key: one for one in (*shared, other)}
    assert len(each_once(judged.values())) == 2
    lines = absent_in_words(judged, "skip")
    assert lines[0].startswith("no backdoor in 1 of 2 victims")
    assert lines[1:] == ["  a/badnets (seed 0): ASR 0.1 is below 0.8"]


def test_a_victim_that_cannot_be_made_fails_the_jobs_that_stand_on_it_alone(tmp_path: Path) -> None:
    spec = tiny_spec("sweep={image_size: [8, 16]}", "defenses=[]", "baselines=[none, ft]")
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    # The same victim spec on other images is another victim.
    driver.break_victims({driver.plan.cells[0].made_from: "victim: boom"})
    run(driver)
    statuses = {(row["combination"], row["status"]) for row in driver.ledger.rows()}
    assert statuses == {("image_size-8", "failed"), ("image_size-16", "ok")}


def test_show_tells_combinations_apart(tmp_path: Path) -> None:
    spec = tiny_spec(SWEEP)
    with driving(tmp_path, spec):
        driver = make_driver(spec, tmp_path / "trials.jsonl")
        run(driver, finishes=7)
    said = overview(tmp_path, called="it")
    assert f"study tiny in it: 7 of {4 * 5} trials done" in said
    for part in combinations(spec):
        assert f"{part.name}/badnets/super_ft" in said
    assert "clean_fraction 0.5, victim.poison_rate 0.05: badnets on digits" in said


def test_a_curve_is_on_the_disk_before_its_row_and_is_read_back(tmp_path: Path) -> None:
    spec = tiny_spec(SWEEP, "curve.every=5")
    plan, written = make_plan(spec), []
    driver = Driver(
        plan,
        make_driver(spec, tmp_path / "trials.jsonl").ledger,
        open_searches(plan, InMemoryStorage()),
        on_curve=lambda row, points: written.append((len(driver.ledger), write_curve(tmp_path, row, points))),
    )
    job: Job | None = driver.next_job()
    assert job is not None
    assert job.curve == 5
    row = driver.finish(job, made_up_row(job, plan), POINTS)
    assert written == [(0, curve_file(row))]
    second = driver.next_job()
    assert second is not None
    driver.finish(second, made_up_row(second, plan))  # as by an earlier version: no curve
    found = read_curves(tmp_path, driver.ledger.rows())
    assert found[["trial", "combination", "step", "asr_report"]].values.tolist() == [
        [row["trial"], row["combination"], 0, 1.0]
    ]
    (tmp_path / curve_file(row)).write_text("{")
    notes: list[str] = []
    assert read_curves(tmp_path, [row], notes).empty
    assert "is damaged" in notes[0]


def test_settings_cost_what_they_cost_on_their_own_images() -> None:
    spec = tiny_spec("sweep={image_size: [8, 16], clean_fraction: [0.1, 0.5]}", "defenses=[]", "baselines=[ft]")
    plan, data, _ = prepare(spec)
    costs: dict[Any, float] = {}
    for job in plan.baselines:
        costs[json.loads(job.cell.swept)["clean_fraction"]] = trial_cost(job.cell, job.settings, data)
    assert costs[0.5] > costs[0.1]


def test_detectors_are_tuned_in_each_combination() -> None:
    spec = tiny_spec(SWEEP, "defenses=[spectral]", "search.ranges={}", "defense={}")
    searches = [search for search in make_plan(spec).searches if search.detector is not None]
    assert len({search.label for search in searches}) == 4
    assert {len(DetectorSearch(search, search.cells, 0, True).cells) for search in searches} == {1}
