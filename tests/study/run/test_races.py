"""Racing in the driver: whose cells run when, what is recorded of dropped settings, what a killed driver forgets."""

from __future__ import annotations

import hashlib
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from study.plan.jobs import Plan, make_plan
from study.record.columns import CELLS_SAVED, DROPPED_BY
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.report.write import write_report
from study.results.fronts import fronts, hypervolume_over_trials
from study.results.left import plan_in, trials_left
from study.results.settings import aggregate_all
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.spec.schema import StudySpec
from study.watch.words import overview
from tests.study.tiny import AS_PUBLISHED, made_up_row, make_driver, run, tiny_spec
from tests.test_architecture import ROOT
from trainables.job import Job

RACING = (
    *("baselines=[]", "attacks=[badnets, blended, wanet]", "defense_seeds=[0, 1]", "search.per=all"),
    *("search.racing=0.05", "search.trials=12", "search.sampler=random", *AS_PUBLISHED),
)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def measure(job: Job, plan: Plan, **changes: Any) -> dict[str, Any]:
    """Good where ``lr_max2`` is as published, worse in both rates the farther from it; a smaller ``lr_max1`` leaves
    more accuracy and more of the backdoor. A little luck in each cell."""
    name = repr((sorted(job.settings.items()), job.cell.place)).encode()
    draw = np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big"))
    off, force = abs(math.log10(job.settings["lr_max2"] / 1e-3)), math.log10(job.settings["lr_max1"] / 0.1)
    accuracy = 0.96 - 0.1 * off - 0.02 * force - 0.01 * job.cell.defense_seed + draw.normal(0, 0.004)
    asr = 0.1 * off * draw.random() + max(0.0, -0.3 * force)
    values = {"asr": min(1.0, asr), "clean_accuracy": min(1.0, max(0.0, accuracy))}
    halves = {f"{key}{half}": value for key, value in values.items() for half in ("", "_search", "_report")}
    return made_up_row(job, plan, **{**halves, **changes})


def dropped_in(driver: Driver) -> dict[str, dict[str, Any]]:
    """Setting -> the row with which it was dropped."""
    return {row["trial"]: dict(row) for row in driver.ledger.rows() if row.get(DROPPED_BY)}


def finished(folder: Path, *assignments: str, slots: int = 1, measure: Any = measure) -> Driver:
    folder.mkdir(exist_ok=True)
    spec = tiny_spec(*RACING, *assignments)
    (folder / SPEC_FILE).write_text(spec.to_yaml())
    driver = make_driver(spec, folder / LEDGER_FILE)
    run(driver, slots, measure=measure)
    return driver


# -- what is recorded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3])
def test_dropped_settings_keep_their_rows_and_are_on_no_front(slots: int, tmp_path: Path) -> None:
    driver = finished(tmp_path, slots=slots)
    frame, gone = driver.ledger.to_frame(), dropped_in(driver)
    cells = Counter(row["trial"] for row in driver.ledger.rows())
    assert len(cells) == 12
    assert len(gone) >= 4
    assert {trial for trial, count in cells.items() if count < 6} == set(gone)
    assert all(cells[trial] + row[CELLS_SAVED] == 6 for trial, row in gone.items())
    assert all(cells[row[DROPPED_BY]] == 6 for row in gone.values()), "a rival is measured whole"
    assert driver.finished
    assert driver.total == driver.done == 72 - sum(row[CELLS_SAVED] for row in gone.values())
    assert not set(gone) & set(fronts(frame)["trial"])
    table = aggregate_all(frame)
    assert set(table["attack"]) == {"all", "badnets", "blended", "wanet"}
    assert not table.loc[table["trial"].isin(gone), "complete"].any(), "in no mean, also not of one attack alone"
    assert table.loc[~table["trial"].isin(gone), "complete"].all()
    assert len(driver.fronts["all/super_ft"]) == (fronts(frame)["attack"] == "all").sum()
    history = hypervolume_over_trials(frame).query("attack == 'all'")
    assert history["finished"].tolist() == [*range(1, 13)], "they were tried"
    assert history["search"].iloc[-1] == pytest.approx(driver.fronts["all/super_ft"].hypervolume)


def test_optuna_is_told_no_value_of_a_dropped_setting(tmp_path: Path) -> None:
    driver = finished(tmp_path)
    gone, (search,) = dropped_in(driver), driver.searches
    for trial in search.study.trials:
        name = trial.user_attrs["id"]
        assert (trial.state == TrialState.PRUNED) == (name in gone)
        if name in gone:
            assert trial.values is None
            assert not trial.intermediate_values
            assert not trial.constraints
            said = {key: trial.user_attrs[key] for key in ("status", DROPPED_BY, CELLS_SAVED, "cells_measured")}
            row = gone[name]
            assert said == {
                "status": "dropped",
                DROPPED_BY: row[DROPPED_BY],
                CELLS_SAVED: row[CELLS_SAVED],
                "cells_measured": 6 - row[CELLS_SAVED],
            }
            assert not [key for key in trial.user_attrs if key.startswith(("asr", "clean_accuracy"))]
    assert not {trial.user_attrs["id"] for trial in search.study.best_trials} & set(gone)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "gp"])
def test_every_sampler_goes_on_after_dropped_settings(sampler: str, tmp_path: Path) -> None:
    floor = ["search.accuracy_floor=0.02"] if sampler in ("tpe", "gp", "nsga2") else []
    driver = finished(tmp_path, f"search.sampler={sampler}", "search.trials=9", "search.startup_trials=4", *floor)
    states = Counter(trial.state for trial in driver.searches[0].study.trials)
    assert driver.finished
    assert states[TrialState.PRUNED] > 0
    assert states[TrialState.PRUNED] + states[TrialState.COMPLETE] == 9


def test_tpe_avoids_the_neighbourhood_of_dropped_settings() -> None:
    """A third of a range is dropped, all else is equally good: of the later proposals a third would lie there by
    chance (and does, where Optuna is told of failures instead)."""
    spec = tiny_spec(*RACING, "search.sampler=tpe", "search.trials=60", "search.startup_trials=10")
    (search,) = open_searches(make_plan(spec), InMemoryStorage())
    search.resume({}, {})
    bad = []
    while (asked := search.ask()) is not None:
        trial, settings = asked
        bad.append(settings["lr_max2"] > 1e-2)
        if bad[-1]:
            search.drop(trial, {"status": "dropped"})
        else:
            search.tell(trial, (0.1, 0.9))
    assert sum(bad[:20]) >= 4
    assert sum(bad[30:]) <= 4


def test_show_and_report_say_what_was_saved(tmp_path: Path) -> None:
    driver = finished(tmp_path)
    driver.ledger.close()
    count, saved = len(dropped_in(driver)), 72 - driver.done
    said = f"all / super_ft: {count} of 12 settings were dropped as dominated, which saved {saved} of 72 trials"
    shown = overview(tmp_path, called="here")
    assert said in shown
    assert f"{driver.done} of {driver.done} trials done" in shown
    assert f"Racing: {said}." in write_report(tmp_path).read_text()
    assert not trials_left(plan_in(tmp_path, driver.plan.spec, driver.ledger.rows()), driver.ledger.rows())


# -- who runs when ----------------------------------------------------------------------------------------------------


def test_one_slot_measures_a_setting_to_its_end_before_the_next(tmp_path: Path) -> None:
    trials = [row["trial"] for row in finished(tmp_path).ledger.rows()]
    assert trials == sorted(trials)


def test_no_slot_idles_while_there_is_a_cell_to_measure(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*RACING), tmp_path / LEDGER_FILE)
    running: list[Job] = []
    open_at_once = 0
    while not driver.finished:
        while len(running) < 5 and (job := driver.next_job()) is not None:
            running.append(job)
        assert len(running) == min(5, driver.remaining().total())
        open_at_once = max(open_at_once, len({job.trial for job in running}))
        job = running.pop(0)
        driver.finish(job, measure(job, driver.plan))
    assert open_at_once == 5, "other settings fill the slots"


def test_a_block_of_cells_runs_together(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*RACING, "search.racing={block: 2}"), tmp_path / LEDGER_FILE)
    jobs = [driver.next_job() for _ in range(8)]
    assert [job.trial[-4:] for job in jobs if job] == ["0000"] * 6 + ["0001"] * 2


def test_the_published_point_is_measured_whole(tmp_path: Path) -> None:
    def bad_where_published(job: Job, plan: Plan) -> dict[str, Any]:
        return measure(job, plan, **({"asr_search": 1.0, "clean_accuracy_search": 0.1} if job.published else {}))

    rows = finished(tmp_path, slots=8, measure=bad_where_published).ledger.rows()
    assert sum(row["published"] for row in rows) == 6
    assert not any(row["published"] for row in rows if row.get(DROPPED_BY))


def test_a_failed_cell_ends_the_race_of_its_setting(tmp_path: Path) -> None:
    """What is not measured bounds nothing; the setting is on no front anyway, and its row is tried again later."""
    driver = make_driver(tiny_spec(*RACING, "search.trials=4"), tmp_path / LEDGER_FILE)
    while (job := driver.next_job()) is not None:
        if job.trial.endswith("0002") and not any(row["trial"] == job.trial for row in driver.ledger.rows()):
            driver.fail(job, "RuntimeError: no luck")
        else:
            driver.finish(job, measure(job, driver.plan))
    rows = [row for row in driver.ledger.rows() if row["trial"].endswith("0002")]
    assert [row["status"] for row in rows].count("failed") == 1
    assert len(rows) == 6
    assert driver.finished


def test_what_runs_when_its_setting_is_dropped_is_recorded_and_not_run_again(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*RACING, "search.racing={block: 2}", "search.trials=3"), tmp_path / LEDGER_FILE)

    def ruined(job: Job) -> dict[str, Any]:
        ruin = {} if job.published else {"asr_search": 1.0, "clean_accuracy_search": 0.1}
        return measure(job, driver.plan, **ruin)

    jobs = [driver.next_job() for _ in range(8)]
    assert all(jobs)
    for job in jobs[:7]:
        assert job is not None
        driver.finish(job, ruined(job))
    (row,) = dropped_in(driver).values()
    assert row[CELLS_SAVED] == 4
    last = jobs[7]
    assert last is not None
    driver.put_back(last)  # its node died
    job = driver.next_job()
    assert job is not None
    assert job.trial != last.trial
    driver.finish(last, ruined(last))  # it had ended after all
    assert len(dropped_in(driver)) == 1
    run(driver, measure=lambda job, plan: ruined(job))
    driver.finish(job, ruined(job))
    assert driver.finished


def test_victims_that_are_left_out_are_no_cells_of_the_race(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*RACING), tmp_path / LEDGER_FILE)
    assert driver.next_job() is not None
    driver.leave_out({("wanet", 0, "")})
    run(driver, slots=1, measure=measure)
    assert {row["attack"] for row in driver.ledger.rows()} == {"badnets", "blended"}
    assert dropped_in(driver)
    assert driver.finished


# -- continuing -------------------------------------------------------------------------------------------------------


def summary(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("trial", "attack", "defense_seed", "param.lr_max2", DROPPED_BY, CELLS_SAVED)
    return [tuple(row.get(name) for name in names) for row in rows]


def test_a_driver_stopped_at_any_row_drops_the_same(tmp_path: Path) -> None:
    """Quasi-random settings, which do not depend on when a driver began."""
    spec = tiny_spec(*RACING, "search.sampler=qmc", "search.trials=8")
    whole = make_driver(spec, tmp_path / "whole.jsonl")
    total = run(whole, slots=1, measure=measure)
    settings = {row["trial"]: row["param.lr_max2"] for row in whole.ledger.rows()}
    assert dropped_in(whole)
    for stop in range(0, total + 1, 3):
        folder = tmp_path / str(stop)
        folder.mkdir()
        first = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder))
        run(first, slots=1, finishes=stop, measure=measure)
        first.ledger.close()
        again = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder))
        left = trials_left(plan_in(folder, spec, first.ledger.rows()), first.ledger.rows())
        assert left == again.remaining()
        run(again, slots=1, measure=measure)
        again.ledger.close()
        if {row["trial"]: row["param.lr_max2"] for row in again.ledger.rows()} == settings:
            assert summary(again.ledger.rows()) == summary(whole.ledger.rows())
        states = {trial.user_attrs["id"]: trial.state for trial in again.searches[0].study.trials}
        assert {name for name, state in states.items() if state == TrialState.PRUNED} == set(dropped_in(again))
        assert TrialState.RUNNING not in states.values()


def test_a_lost_storage_is_told_of_dropped_settings_again(tmp_path: Path) -> None:
    first = finished(tmp_path)
    first.ledger.close()
    again = make_driver(first.plan.spec, tmp_path / LEDGER_FILE, InMemoryStorage())
    assert again.finished
    assert not again.has_work()
    states = Counter(trial.state for trial in again.searches[0].study.trials)
    assert states == {TrialState.PRUNED: len(dropped_in(first)), TrialState.COMPLETE: 12 - len(dropped_in(first))}


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.study.run.test_races as own
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from tests.study.tiny import make_driver, run

folder, append = Path(sys.argv[1]), Ledger.append

def append_and_die(ledger, row):
    append(ledger, row)
    if sum(bool(one.get("dropped_by")) for one in ledger.rows()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.append = append_and_die
driver = make_driver(own.killed_spec(), folder / own.LEDGER_FILE, open_storage("journal", folder))
run(driver, slots=2, measure=own.measure)
"""


def killed_spec() -> StudySpec:
    """Of the killed process."""
    return tiny_spec(*RACING, "search.trials=8")


def test_a_process_killed_between_the_row_and_what_follows_from_it(tmp_path: Path) -> None:
    """kill -9 right after the row that drops a second setting is on the disk: nobody was told of it, none of its cells
    was taken back."""
    ran = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, timeout=300, check=False)
    assert ran.returncode == -signal.SIGKILL
    before = Ledger.read(tmp_path / LEDGER_FILE).rows()
    assert before[-1][DROPPED_BY]
    driver = make_driver(killed_spec(), tmp_path / LEDGER_FILE, open_storage("journal", tmp_path))
    states = {trial.user_attrs["id"]: trial.state for trial in driver.searches[0].study.trials}
    gone = set(dropped_in(driver))
    assert len(gone) == 2
    assert {name for name, state in states.items() if state == TrialState.PRUNED} == gone
    run(driver, slots=2, measure=measure)
    rows = driver.ledger.rows()
    assert driver.finished
    assert summary(rows[: len(before)]) == summary(before)
    cells, more = Counter(row["trial"] for row in rows), set(dropped_in(driver))
    assert gone <= more
    assert not {row["trial"] for row in rows[len(before) :]} & {before[-1]["trial"]}
    assert {trial for trial, count in cells.items() if count < 6} == more
    assert len(cells) == 8
