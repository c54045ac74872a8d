"""Victims without a backdoor: one rule for what Optuna is told, progress, tracking and report, and what is not run."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.plan.jobs import Plan, make_plan
from study.record.columns import to_frame
from study.record.folder import Folder
from study.record.victims import (
    Judged,
    Key,
    NoBackdoorError,
    absent,
    absent_in_words,
    decided,
    read_victims,
    write_victims,
)
from study.report.terminal import front_summary
from study.report.write import write_report
from study.results.fronts import fronts
from study.results.in_words import models_of
from study.results.settings import aggregate_all
from study.run.before_trials import check_implanted, settle
from study.run.driver import Driver
from study.run.progress import Progress
from study.tracking.points import Points
from tests.study.rows import make_row
from tests.study.tiny import make_driver, run, tiny_spec
from trainables.job import Job

FOUR = ("attacks=[badnets, blended]", "seeds=[0, 1]", "search.per=all", "baselines=[]", "search.trials=3")
CELLS = (("badnets", 0, ""), ("badnets", 1, ""), ("blended", 0, ""), ("blended", 1, ""))


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def judged(*without: Key) -> dict[Key, Judged]:
    return {
        key: Judged(*key[:2], f"victim-{key}", "ASR 0.100 is below 0.8" if key in without else None, 0.1, 0.0, 0.9)
        for key in CELLS
    }


def one_of_four(job: Job, plan: Plan, **changes: Any) -> dict[str, Any]:
    """Only BadNets under seed 0 has a backdoor; there the repair works, elsewhere there was nothing to repair."""
    works = job.cell.whose == CELLS[0]
    rates = {"asr": 0.004, "clean_accuracy": 0.548} if works else {"asr": 0.341, "clean_accuracy": 0.587}
    full = make_row(
        "all/super_ft/0000",
        **job.cell.columns(),
        **{f"param.{key}": value for key, value in job.settings.items()},
        **rates,
        status="ok" if works else "backdoor_not_implanted",
        **changes,
    )
    return {key: value for key, value in full.items() if key not in ("trial", "search", "role", "study", "schema")}


def test_optuna_progress_tracking_and_report_rest_on_the_same_cells_and_say_how_many(tmp_path: Path) -> None:
    """Optuna was told the mean over all four (0.257/0.577), the report's front said 0.004/0.548, the progress none."""
    spec = tiny_spec(*FOUR)
    driver, said = make_driver(spec, tmp_path / "trials.jsonl"), io.StringIO()
    progress = Progress(driver, said, clock=iter(range(0, 10_000, 10)).__next__)
    points, tracked = Points(lambda: driver.plan), []
    while (job := driver.next_job()) is not None:
        progress.trial(driver.finish(job, one_of_four(job, driver.plan)))
        tracked += points.add(driver.ledger.rows()[-1])
    (search,) = driver.searches
    told = [tuple(trial.values) for trial in search.study.trials]
    assert told == [(0.004, 0.548)] * 3
    assert {trial.user_attrs["models"] for trial in search.study.trials} == {"1 of 4 models"}
    (front,) = driver.fronts.values()
    assert front.points == [(0.004, 0.548)]
    assert f"front 1, hypervolume {0.996 * 0.548:.4f} (1 of 4 models)" in said.getvalue().splitlines()[-1]
    assert tracked[-2].values["front_size"] == 1
    (tmp_path / "study.yaml").write_text(spec.to_yaml())
    driver.ledger.close()
    frame = to_frame(driver.ledger.rows())
    members = fronts(frame)
    both = members[members["attack"] == "all"]
    assert both[["asr_search", "clean_accuracy_search", "cells", "models"]].values.tolist() == [[0.004, 0.548, 1, 4]]
    assert "1 of 4 models" in front_summary(tmp_path) or "1 of 2 models" in front_summary(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "1 of 4 models" in page
    assert "1 of 2 models" in page, "BadNets alone"


def test_progress_and_report_have_the_same_front_whatever_becomes_of_the_cells(tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(12):
        lost = draw.sample(CELLS, draw.randrange(4))

        def measure(job: Job, plan: Plan, lost: list[tuple[str, int]] = lost) -> dict[str, Any]:
            status = draw.choice(["ok", "ok", "ok", "ok", "abstained", "failed", "diverged"])
            if (job.cell.attack, job.cell.seed) in lost:
                status = "backdoor_not_implanted"
            rates = {"asr": round(draw.random(), 3), "clean_accuracy": round(draw.random(), 3)}
            rates = {"asr": 1.0, "clean_accuracy": 0.0} if status == "diverged" else rates
            made = one_of_four(job, plan) | {f"{key}{half}": v for key, v in rates.items() for half in ("", "_search")}
            gone = dict.fromkeys(made.keys() & {"asr", "asr_search", "asr_report"}) if status == "failed" else {}
            return made | {"status": status, "collapsed": draw.random() < 0.05} | gone

        driver = make_driver(tiny_spec(*FOUR, "search.trials=8"), tmp_path / f"{number}.jsonl")
        run(driver, measure=measure)
        found = fronts(to_frame(driver.ledger.rows()))
        found = found[found["attack"] == "all"]
        own = [*zip(found["asr_search"], found["clean_accuracy_search"], strict=True)]
        (front,) = driver.fronts.values()
        assert [pytest.approx(point) for point in front.points] == own, number


@pytest.mark.parametrize("policy", ["skip", "run"])
def test_a_search_without_any_backdoor_is_left_out_and_its_trials_only_run_if_asked_for(
    policy: str, tmp_path: Path
) -> None:
    spec = tiny_spec("attacks=[badnets, blended]", f"victim.require_implanted={policy}")
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    first = driver.next_job()  # as a driver that looked for work before the victims were known
    assert first is not None
    driver.put_back(first)
    driver.leave_out({("blended", 0, "")})
    run(driver)
    baselines = {row["attack"] for row in driver.ledger.rows() if row["role"] == "baseline"}
    assert baselines == ({"badnets"} if policy == "skip" else {"badnets", "blended"})
    assert {row["search"] for row in driver.ledger.rows() if row["role"] == "search"} == {"badnets/super_ft"}
    assert driver.finished
    assert driver.done == driver.total == (5 if policy == "skip" else 6)
    assert driver.remaining().total() == 0


def test_a_pooled_search_runs_only_where_there_is_a_backdoor(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    driver = make_driver(tiny_spec(*FOUR), tmp_path / "trials.jsonl", storage)
    assert driver.has_work()  # a setting was asked, with a job for each of the four
    driver.leave_out({CELLS[1], CELLS[2], CELLS[3]})
    assert run(driver, measure=one_of_four) == driver.total == 3
    assert {(row["attack"], row["seed"], "") for row in driver.ledger.rows()} == {CELLS[0]}
    assert {row["models"] for row in driver.ledger.rows()} == {4}
    (search,) = driver.searches
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE] * 3
    table = aggregate_all(to_frame(driver.ledger.rows()))
    assert {row["attack"]: models_of(row) for _, row in table.iterrows()} == {
        "all": "1 of 4 models",
        "badnets": "",  # of the seeds that have a row there is one
    }


def test_a_search_that_is_left_out_leaves_no_optuna_trial_running(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec("baselines=[]"), tmp_path / "trials.jsonl")
    assert driver.has_work()
    (search,) = driver.searches
    driver.leave_out({("badnets", 0, "")})
    assert [trial.state for trial in search.study.trials] == [TrialState.FAIL]
    assert driver.finished
    assert driver.total == 0


@pytest.mark.parametrize("stop", range(1, 4))
def test_a_study_continued_after_its_decision_decides_the_same(stop: int, tmp_path: Path) -> None:
    write_victims(tmp_path, judged(*CELLS[1:]).values())
    storage, spec = InMemoryStorage(), tiny_spec(*FOUR)

    def driver() -> Driver:
        rows = tmp_path / "trials.jsonl"
        missing = absent(decided(tmp_path, []))
        plan = make_plan(spec).without(missing)
        made = make_driver(spec, rows, storage, plan=plan)
        assert made.plan == plan
        return made

    first = driver()
    run(first, finishes=stop, measure=one_of_four)
    first.ledger.close()
    again = driver()
    assert (again.done, again.total) == (stop, 3)
    run(again, measure=one_of_four)
    assert {(row["attack"], row["seed"], "") for row in again.ledger.rows()} == {CELLS[0]}
    assert again.finished


def said_by(action: Callable[[Progress], object], tmp_path: Path) -> str:
    stream = io.StringIO()
    action(Progress(make_driver(tiny_spec(), tmp_path / "trials.jsonl"), stream))
    return stream.getvalue()


def test_what_was_decided_before_stands_and_a_change_is_said(tmp_path: Path) -> None:
    before, now = judged(CELLS[0]), judged(CELLS[1])
    text = said_by(lambda progress: settle(before, now, Folder(tmp_path), progress), tmp_path)
    assert read_victims(tmp_path) == before
    assert text.count("what was decided then stands") == 2
    assert said_by(lambda progress: settle({}, now, Folder(tmp_path), progress), tmp_path) == ""
    assert read_victims(tmp_path) == now


def test_a_study_without_decisions_goes_on_as_its_rows_say(tmp_path: Path) -> None:
    rows = [
        make_row("badnets/none/baseline"),
        make_row("blended/none/baseline", status="backdoor_not_implanted", error="ASR 0.2 is below 0.8"),
        make_row("blended/ft/baseline", status="abstained"),
    ]
    found = decided(tmp_path, rows)
    assert {key: one.not_implanted for key, one in found.items()} == {
        ("badnets", 0, ""): None,
        ("blended", 0, ""): "ASR 0.2 is below 0.8",
    }


def test_stop_ends_in_one_line_that_names_victim_and_reason() -> None:
    spec = tiny_spec("victim.require_implanted=stop")
    check_implanted(judged(), spec)
    check_implanted(judged(CELLS[2]), tiny_spec())
    with pytest.raises(
        NoBackdoorError, match=r"no backdoor in 1 of 4 victims.*blended \(seed 0\): ASR 0\.100 is below"
    ):
        check_implanted(judged(CELLS[2]), spec)


def test_what_is_left_out_is_said_in_words() -> None:
    assert absent_in_words(judged(), "skip") == []
    lines = absent_in_words(judged(CELLS[3]), "skip")
    assert lines == [
        "no backdoor in 1 of 4 victims; its trials are not run:",
        "  blended (seed 1): ASR 0.100 is below 0.8",
    ]
    assert "count in no front" in absent_in_words(judged(*CELLS[:2]), "run")[0]
    assert "so there is no search" in absent_in_words(judged(*CELLS), "skip")[0]


def test_plan_is_smaller_by_exactly_what_has_no_backdoor() -> None:
    spec = tiny_spec(*FOUR, "baselines=[none, ft]")
    for count in range(5):
        for lost in itertools.combinations(CELLS, count):
            plan = make_plan(spec).without(lost)
            left = 4 - count
            assert plan.total_jobs == left * 2 + (left * 3 if left else 0)
            assert {cell.victim for cell in plan.cells}.isdisjoint(
                cell.victim for cell in make_plan(spec).cells if cell.whose in lost
            )
