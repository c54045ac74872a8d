"""What a search chose, run again on fresh seeds: planned, continued, and beside the study's own results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna.storages import InMemoryStorage

from study.plan.costs import work_left
from study.plan.forecast import plan_lines
from study.plan.jobs import load_data, make_plan
from study.record.columns import to_frame
from study.record.folder import LEDGER_FILE, SPEC_FILE
from study.record.optuna_storage import open_storage
from study.report.write import write_report
from study.results.confirmed import confirmed_settings, jackknife, winners_curse
from study.results.fronts import fronts, hypervolume_over_trials
from study.results.left import plan_in, trials_left
from study.results.settings import aggregate_all
from study.run.driver import Driver
from study.watch.words import overview
from tests.study.rows import point
from tests.study.tiny import AS_PUBLISHED, made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

CONFIRM = (*AS_PUBLISHED, "search.confirm=2", "search.trials=4")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def confirming(driver: Driver) -> list[dict[str, Any]]:
    return [dict(row) for row in driver.ledger.rows() if row["role"] == "confirm"]


@pytest.mark.parametrize("per", ["attack", "all"])
def test_the_front_runs_again_on_the_next_seeds(per: str, tmp_path: Path) -> None:
    spec = tiny_spec(
        *CONFIRM, "attacks=[badnets, blended]", f"search.per={per}", "seeds=[3, 1]", "defense_seeds=[7, 2]"
    )
    driver = make_driver(spec, tmp_path / "trials.jsonl")
    assert driver.total == driver.plan.total_jobs == 8 + 4 * 8 + 4 * 4, "the most there can be"
    run(driver)
    assert driver.finished
    assert driver.total == driver.done
    frame, rows = driver.ledger.to_frame(), confirming(driver)
    members = fronts(frame)
    if per == "all":
        members = members[members["attack"] == "all"]
    wanted = {
        (trial.replace("super_ft/", "super_ft/confirm/"), attack, seed, 7)
        for trial in members["trial"]
        for attack in (["badnets", "blended"] if per == "all" else [trial.partition("/")[0]])
        for seed in (4, 5)
    }
    assert {(row["trial"], row["attack"], row["seed"], row["defense_seed"]) for row in rows} == wanted
    assert len(rows) == len(wanted) > 0
    settings = {row["trial"]: row["param.lr_max1"] for row in driver.ledger.rows() if row["role"] == "search"}
    assert all(row["param.lr_max1"] == settings[row["trial"].replace("/confirm", "")] for row in rows)
    assert {row["models"] for row in rows} == {4 if per == "all" else 2}
    found = confirmed_settings(frame)
    assert set(found["trial"]) == set(members["trial"])
    assert (found["models_counted"] == found["models"]).all()


def test_the_study_itself_is_as_without(tmp_path: Path) -> None:
    plain = make_driver(tiny_spec(*AS_PUBLISHED, "search.trials=4"), tmp_path / "plain.jsonl")
    more = make_driver(tiny_spec(*CONFIRM), tmp_path / "more.jsonl")
    run(plain, slots=1)
    run(more, slots=1)
    first, frame = plain.ledger.to_frame(), more.ledger.to_frame()
    assert len(frame) > len(first)
    for table in (aggregate_all, fronts, hypervolume_over_trials):
        pd.testing.assert_frame_equal(table(first), table(frame)[table(first).columns])
    assert confirmed_settings(first).empty
    assert winners_curse(first).empty


def test_a_driver_stopped_at_any_row_confirms_the_same(tmp_path: Path) -> None:
    spec = tiny_spec(*CONFIRM)

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["trial"], row["seed"], row["param.lr_max1"], row["asr_report"]

    whole = make_driver(spec, tmp_path / "whole.jsonl")
    total = run(whole, slots=1)
    expected = sorted(map(key, confirming(whole)))
    seen = 0
    for stop in range(total + 1):
        folder = tmp_path / str(stop)
        folder.mkdir()
        first = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder))
        assert run(first, slots=1, finishes=stop) == stop
        first.ledger.close()
        kept = first.ledger.rows()
        again = make_driver(spec, folder / LEDGER_FILE, open_storage("journal", folder))
        left = trials_left(plan_in(folder, spec, kept), kept)
        assert left == again.remaining()
        if not left["badnets/super_ft"]:
            assert left.total() == total - stop, "exact once the search is over"
        assert run(again) == total - stop
        assert again.finished
        # Stopped before that, the sampler may draw other settings, and another front is confirmed.
        if not left["badnets/super_ft"]:
            assert sorted(map(key, confirming(again))) == expected
            seen += 1
        ids = {row["trial"].replace("/confirm", "") for row in confirming(again)}
        assert ids == set(fronts(again.ledger.to_frame())["trial"])
        assert len(confirming(again)) == 2 * len(ids)
        assert not trials_left(plan_in(folder, spec, again.ledger.rows()), again.ledger.rows())
        again.ledger.close()
    assert seen > len(expected), "also between the last row of the search and the end"


def test_nothing_is_confirmed_before_the_search_is_over_and_its_end_is_waited_for(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*CONFIRM, "baselines=[]"), tmp_path / "trials.jsonl")
    jobs = list(iter(driver.next_job, None))
    assert [job.role for job in jobs] == ["search"] * 4
    for job in jobs:
        assert driver.waits()
        assert driver.next_job() is None
        driver.finish(job, made_up_row(job, driver.plan))
    assert not driver.waits()
    assert driver.has_work()
    assert {job.role for job in iter(driver.next_job, None)} == {"confirm"}


def test_a_fresh_victim_without_a_backdoor_is_left_out_and_a_broken_one_fails(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*CONFIRM), tmp_path / "trials.jsonl")
    driver.leave_out({("badnets", 1, "")})
    (cell,) = driver.plan.searches[0].fresh
    driver.break_victims({cell.made_from: "victim: no room"})
    run(driver)
    assert driver.finished
    assert {(row["seed"], row["status"]) for row in confirming(driver)} == {(2, "failed")}
    assert winners_curse(driver.ledger.to_frame()).empty


def test_a_search_whose_victims_are_broken_confirms_nothing(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*CONFIRM), tmp_path / "trials.jsonl")
    driver.break_victims({cell.made_from: "victim: no room" for cell in driver.plan.searches[0].cells})
    run(driver)
    assert driver.finished
    assert not confirming(driver)


def _lucky(job: Job, plan: Any) -> dict[str, Any]:
    """What every trial finds is worse on fresh seeds: by 2 points of ASR on seed 1, by 4 on seed 2."""
    seed = job.cell.seed
    return made_up_row(job, plan, asr_report=0.1 + 0.02 * seed, clean_accuracy_report=0.9 - 0.01 * seed)


def test_the_winners_curse_of_known_values_stands_in_report_and_show(tmp_path: Path) -> None:
    spec = tiny_spec(*CONFIRM)
    (tmp_path / SPEC_FILE).write_text(spec.to_yaml())
    driver = make_driver(spec, tmp_path / LEDGER_FILE, InMemoryStorage())
    run(driver, measure=_lucky)
    driver.ledger.close()
    (one,) = [row for _, row in winners_curse(driver.ledger.to_frame()).iterrows()]
    reach = 12.706205 * 0.02 / 2  # t at 0.975 with 1 degree of freedom; the seeds' differences are 0.02 and 0.04
    assert (one["asr"], one["asr_low"], one["asr_high"]) == pytest.approx((0.03, 0.03 - reach, 0.03 + reach))
    assert one["clean_accuracy"] == pytest.approx(-0.015)
    assert one["clean_accuracy_high"] == pytest.approx(-0.015 + reach / 2)
    assert one["seeds"] == 2
    part = write_report(tmp_path).read_text()
    part = part.partition("<summary>Does the choice hold on fresh seeds?</summary>")[2].partition("</details>")[0]
    assert "+3.0 [-9.7, +15.7]" in part
    assert "-1.5 [-7.9, +4.9]" in part
    shown = [line.split() for line in overview(tmp_path, called="here").splitlines()]
    (line,) = [line for line in shown if line[:1] == ["badnets/super_ft/confirm"]]
    assert line[1:3] == [str(one["settings"]), "0"]


def test_a_fresh_model_that_collapsed_is_the_worst_there_is_and_said(tmp_path: Path) -> None:
    """Its ASR is 0 by accident."""
    spec = tiny_spec(*CONFIRM)
    (tmp_path / SPEC_FILE).write_text(spec.to_yaml())
    driver = make_driver(spec, tmp_path / LEDGER_FILE, InMemoryStorage())

    def ruined(job: Job, plan: Any) -> dict[str, Any]:
        changes = {"asr_report": 0.0, "clean_accuracy_report": 0.1, "collapsed": True} if job.cell.seed == 2 else {}
        return {**_lucky(job, plan), **changes}

    run(driver, measure=ruined)
    driver.ledger.close()
    confirmed = confirmed_settings(driver.ledger.to_frame())
    assert confirmed["asr_confirmed"].tolist() == pytest.approx([(0.12 + 1.0) / 2] * len(confirmed))
    assert confirmed["clean_accuracy_confirmed"].tolist() == pytest.approx([0.89 / 2] * len(confirmed))
    assert "2 (1 collapsed or diverged)" in write_report(tmp_path).read_text()


def test_over_several_attacks_the_rule_of_the_study_holds() -> None:
    def cell(trial: str, attack: str, seed: int, asr: float, role: str) -> dict[str, Any]:
        label = "all/super_ft" + ("/confirm" if role == "confirm" else "")
        changes = {"role": role, "search": label, "attack": attack, "seed": seed, "models": 2, "aggregate": "worst"}
        return {**point(0, asr, 0.9, **changes), "trial": f"{label}/0000"}

    rows = [cell("0", attack, 0, asr, "search") for attack, asr in (("badnets", 0.1), ("blended", 0.2))]
    asrs = {("badnets", 1): 0.23, ("blended", 1): 0.19, ("badnets", 2): 0.19, ("blended", 2): 0.25}
    rows += [{**cell("0", a, s, asr, "confirm"), "models": 4} for (a, s), asr in asrs.items()]
    (one,) = [row for _, row in winners_curse(to_frame(rows)).iterrows()]
    # Means over the seeds are 0.21 and 0.22, the worst of them 0.22; without a seed, 0.25 or 0.23.
    assert (one["attack"], one["asr"], one["seeds"]) == ("all", pytest.approx(0.02), 2)
    assert one["asr_high"] == pytest.approx(0.02 + 12.706205 * 0.01)


def test_the_jackknife_of_means_is_students_interval() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5])
    found = jackknife(float(values.mean()), [float(np.delete(values, i).mean()) for i in range(4)])
    reach = 3.1824463 * values.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((0.275 - reach, 0.275 + reach))
    assert (jackknife(0.1, []).low, jackknife(0.1, []).high) == (-1.0, 1.0)


def test_the_plan_counts_and_costs_at_most_all_settings() -> None:
    spec = tiny_spec(*CONFIRM)
    plan, (data, upstream) = make_plan(spec), load_data(spec)
    (work,) = [item for item in work_left(plan, data) if item.role == "confirm"]
    assert (work.label, work.trials) == ("badnets/super_ft/confirm", 8)
    assert work.epochs == pytest.approx(8 * work.each)
    assert work.each > 0
    assert {cell.victim.seed for cell in plan.victims()} == {0, 1, 2}
    (line,) = [line for line in plan_lines(plan, data, upstream) if line.startswith("confirmed:")]
    assert line.startswith(f"confirmed: at most 8 trials, {work.epochs:.1f} E")
    plain = plan_lines(make_plan(tiny_spec()), data, upstream)
    assert not [line for line in plain if "confirm" in line]
