"""The study's loop without Ray: every job once, whatever it is stopped at, and every result told."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from study.plan.jobs import Plan, make_plan
from study.record.ledger import Ledger
from study.record.optuna_storage import open_storage
from study.record.words import describe, duration, finishing_time
from study.run.driver import Driver
from study.run.progress import Progress
from study.search.optuna_search import open_searches
from tests.study.tiny import AS_PUBLISHED, made_up_row, make_driver, run, tiny_spec
from trainables.job import Job

TWO = ("attacks=[badnets, blended]", "seeds=[0, 7]", "search.trials=5")
HALVES = ("", "_search", "_report")
MANY = (*TWO, "baselines=[none, ft]")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def identities(driver: Driver) -> list[tuple[str, str, int]]:
    return [(row["trial"], row["attack"], row["seed"]) for row in driver.ledger.rows()]


def states(driver: Driver) -> list[TrialState]:
    return [t.state for search in driver.searches for t in search.study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("per", ["attack", "all"])
@pytest.mark.parametrize("slots", [1, 3, 50])
def test_exactly_the_planned_jobs_run_each_once(per: str, slots: int, tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*MANY, f"search.per={per}"), tmp_path / "trials.jsonl")
    assert run(driver, slots) == driver.total == driver.plan.total_jobs == driver.done == 8 + 5 * 4
    assert len(set(identities(driver))) == driver.total
    assert driver.finished
    assert not driver.has_work()
    assert states(driver) == [TrialState.COMPLETE] * (5 if per == "all" else 10)


def test_rows_say_what_they_are(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*AS_PUBLISHED), tmp_path / "trials.jsonl")
    run(driver)
    rows = {row["trial"]: row for row in driver.ledger.rows()}
    assert list(rows) == ["badnets/none/baseline"] + [f"badnets/super_ft/000{n}" for n in range(4)]
    assert {row["study"] for row in rows.values()} == {"tiny"}
    assert [row["role"] for row in rows.values()] == ["baseline"] + ["search"] * 4
    assert [row["published"] for row in rows.values()] == [False, True, False, False, False]
    assert [row["published_for"] for row in rows.values()] == [None, "cifar10", None, None, None]
    published = rows["badnets/super_ft/0000"]
    assert (published["param.lr_max1"], published["param.iterations"]) == (0.1, 500)


def test_a_job_that_was_put_back_is_the_next_and_is_recorded_once(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(), tmp_path / "trials.jsonl")
    first, second = driver.next_job(), driver.next_job()
    assert first is not None
    assert second is not None
    driver.put_back(first)
    assert driver.next_job() == first
    driver.put_back(first)
    driver.finish(second, made_up_row(second, driver.plan))
    run(driver)
    assert driver.finished
    assert len(set(identities(driver))) == driver.done == driver.total


def test_searches_take_turns(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec("attacks=[badnets, blended]", "baselines=[]"), tmp_path / "trials.jsonl")
    handed = [driver.next_job() for _ in range(6)]
    assert [job.trial.split("/")[0] for job in handed if job] == ["badnets", "blended"] * 3


@pytest.mark.parametrize("per", ["attack", "all"])
@pytest.mark.parametrize("keep_storage", [True, False], ids=["journal", "journal lost"])
def test_a_driver_stopped_at_any_point_is_continued_to_the_same_study(
    per: str, keep_storage: bool, tmp_path: Path
) -> None:
    spec = tiny_spec(*TWO, *AS_PUBLISHED, "search.trials=3", f"search.per={per}")
    whole = make_driver(spec, tmp_path / "whole.jsonl")
    run(whole)
    for stop in range(whole.total + 1):
        directory = tmp_path / f"stop{stop}"
        directory.mkdir()

        def storage(directory: Path = directory) -> BaseStorage:
            return open_storage("journal", directory) if keep_storage else InMemoryStorage()

        first = make_driver(spec, directory / "trials.jsonl", storage())
        assert run(first, finishes=stop) == stop
        first.ledger.close()
        second = make_driver(spec, directory / "trials.jsonl", storage())
        assert second.done == stop
        assert run(second) == whole.total - stop, stop
        assert sorted(identities(second)) == sorted(identities(whole)), stop
        assert TrialState.RUNNING not in states(second), stop
        assert states(second).count(TrialState.COMPLETE) == (3 if per == "all" else 6), stop
        rows = second.ledger.rows()
        settings: dict[str, set[str]] = {}
        for row in rows:
            text = repr(sorted(item for item in row.items() if item[0].startswith("param.")))
            settings.setdefault(row["trial"], set()).add(text)
        assert all(len(found) == 1 for found in settings.values()), "one id, one setting, over all its cells"
        assert sum(row["published"] for row in rows) == 4, "the published point once per attack and seed"
        assert second.fronts.keys() == whole.fronts.keys()
        second.ledger.close()


@pytest.mark.parametrize("between", ["append", "tell"])
def test_a_kill_around_the_row_neither_repeats_nor_loses_it(between: str, tmp_path: Path) -> None:
    """Before the row reached the ledger the trial runs again; after it, only the tell is made up for."""
    storage = InMemoryStorage()
    driver = make_driver(tiny_spec("baselines=[]"), tmp_path / "trials.jsonl", storage)
    job = driver.next_job()
    assert job is not None
    if between == "tell":
        driver.ledger.append({**made_up_row(job, driver.plan), "trial": job.trial, "role": "search"})
    driver.ledger.close()
    again = make_driver(tiny_spec("baselines=[]"), tmp_path / "trials.jsonl", storage)
    following = again.next_job()
    assert following is not None
    assert (following.trial == job.trial) == (between == "append")
    assert states(again)[0] == (TrialState.RUNNING if between == "append" else TrialState.COMPLETE)


def test_a_finished_study_has_no_work_and_asks_nothing(tmp_path: Path) -> None:
    spec, storage = tiny_spec(*MANY), open_storage("journal", tmp_path)
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage)
    run(driver)
    driver.ledger.close()
    before = (tmp_path / "optuna.journal").read_bytes()
    again = make_driver(spec, tmp_path / "trials.jsonl", open_storage("journal", tmp_path))
    assert not again.has_work()
    assert again.next_job() is None
    assert again.finished
    assert len(states(again)) == 10
    assert (tmp_path / "optuna.journal").read_bytes().startswith(before)


@pytest.mark.parametrize("stop", [3, None], ids=["stopped", "finished"])
def test_a_study_is_extended_by_what_is_new(stop: int | None, tmp_path: Path) -> None:
    storage = InMemoryStorage()
    first = make_driver(tiny_spec(*TWO), tmp_path / "trials.jsonl", storage)
    run(first, finishes=stop)
    before = identities(first)
    first.ledger.close()
    more = make_driver(tiny_spec(*TWO, "search.trials=8"), tmp_path / "trials.jsonl", storage)
    run(more)
    assert more.done == more.total == 4 + 8 * 4
    assert identities(more)[: len(before)] == before
    assert len(set(identities(more))) == more.total
    assert more.finished


def test_a_failed_job_is_a_row_with_its_cause_and_counts(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(), tmp_path / "trials.jsonl")
    run(driver, slots=1, finishes=2)  # the baseline and the published point
    job = driver.next_job()
    assert job is not None
    row = driver.fail(job, "RuntimeError: card on fire")
    assert (row["status"], row["error"], row["role"]) == ("failed", "RuntimeError: card on fire", "search")
    assert row["param.lr_max1"] == job.settings["lr_max1"]
    assert states(driver).count(TrialState.FAIL) == 1
    run(driver)
    assert driver.done == driver.total
    again = make_driver(tiny_spec(), tmp_path / "trials.jsonl")
    assert not again.has_work(), "a failed trial is finished: continuing does not run it again"
    assert states(again).count(TrialState.FAIL) == 1


def test_a_setting_over_all_attacks_and_seeds_is_told_its_mean(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*TWO, "search.per=all", "baselines=[]"), tmp_path / "trials.jsonl")
    values = iter([0.1, 0.2, 0.3, 0.8])
    for _ in range(4):
        assert states(driver) in ([], [TrialState.WAITING], [TrialState.RUNNING])
        job = driver.next_job()
        assert job is not None
        asr = next(values)
        changes = {"asr_search": asr, "clean_accuracy_search": 1 - asr, "asr": 0.0, "asr_report": 0.0}
        driver.finish(job, made_up_row(job, driver.plan, **changes))
    told = driver.searches[0].study.get_trials()[0]
    assert told.values == pytest.approx([0.35, 0.65]), "the search half alone; people read the report half"


def test_a_setting_that_failed_on_a_cell_is_told_as_failed(tmp_path: Path) -> None:
    """A mean over the other cells, which may be the easier ones, is not what was asked."""
    driver = make_driver(tiny_spec(*TWO, "search.per=all", "baselines=[]"), tmp_path / "trials.jsonl")
    for failing in ((), (0, 1), (0, 1, 2, 3)):
        for number in range(4):
            job = driver.next_job()
            assert job is not None
            if number in failing:
                driver.fail(job, "RuntimeError: x")
            else:
                driver.finish(job, made_up_row(job, driver.plan, asr_search=0.1 * number, clean_accuracy_search=0.9))
    first, *others = driver.searches[0].study.get_trials()[:3]
    assert first.values == pytest.approx([0.15, 0.9])
    assert [trial.state for trial in others] == [TrialState.FAIL] * 2


def test_a_diverged_trial_is_a_completed_worst_point(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec("baselines=[]"), tmp_path / "trials.jsonl")
    job = driver.next_job()
    assert job is not None
    worst = {"status": "diverged", "asr_search": 1.0, "clean_accuracy_search": 0.0}
    driver.finish(job, made_up_row(job, driver.plan, **worst))
    told = driver.searches[0].study.get_trials()[0]
    assert (told.state, told.values) == (TrialState.COMPLETE, [1.0, 0.0])


def test_cells_with_a_broken_victim_fail_without_being_run_and_the_rest_goes_on(tmp_path: Path) -> None:
    driver = make_driver(tiny_spec(*TWO, "search.trials=6"), tmp_path / "trials.jsonl")
    broken = {cell.made_from: "victim: boom" for cell in driver.plan.cells if cell.attack == "blended"}
    driver.break_victims(broken)
    measured: list[Job] = []

    def measure(job: Job, plan: Any) -> dict[str, Any]:
        measured.append(job)
        return made_up_row(job, plan)

    run(driver, measure=measure)
    assert {job.cell.attack for job in measured} == {"badnets"}
    assert len(measured) == 2 + 6 * 2
    failed = [row for row in driver.ledger.rows() if row["status"] == "failed"]
    assert {row["attack"] for row in failed} == {"blended"}
    assert {row["error"] for row in failed} == {"victim: boom"}
    assert len(failed) == 2 + 2, "the baselines and one setting, not a whole search of failures"
    assert driver.finished
    assert TrialState.RUNNING not in states(driver)


def test_a_broken_victim_that_can_be_made_later_gets_its_search(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    first = make_driver(tiny_spec("baselines=[]", *AS_PUBLISHED), tmp_path / "trials.jsonl", storage)
    first.break_victims({first.plan.cells[0].made_from: "victim: no space left on device"})
    run(first)
    assert first.ledger.set_aside_failed() == 1  # --retry-failed
    first.ledger.close()
    again = make_driver(tiny_spec("baselines=[]", *AS_PUBLISHED), tmp_path / "trials.jsonl", storage)
    assert run(again) == 4
    assert [row["status"] for row in again.ledger.rows()] == ["ok"] * 4
    assert sum(row["published"] for row in again.ledger.rows()) == 1


def test_a_damaged_row_is_measured_again_and_the_total_stays(tmp_path: Path) -> None:
    path, storage = tmp_path / "trials.jsonl", InMemoryStorage()
    first = make_driver(tiny_spec(*TWO), path, storage)
    run(first)
    first.ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:7], lines[7][:40] + b"\n", *lines[8:]]))
    again = make_driver(tiny_spec(*TWO), path, storage)
    assert len(again.ledger.damaged) == 1
    lost = set(identities(first)) - set(identities(again))
    assert run(again) == 1
    assert identities(again)[-1] in lost
    assert sorted(identities(again)) == sorted(identities(first))


def test_baselines_of_a_searched_defense_do_not_mix_with_its_search(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    spec = tiny_spec("baselines=[super_ft]")
    run(make_driver(spec, tmp_path / "trials.jsonl", storage), finishes=2)
    again = make_driver(spec, tmp_path / "trials.jsonl", storage)
    run(again)
    assert again.done == 5
    assert states(again) == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_trials_pass_through_the_loop(count: int, tmp_path: Path, record_property: Callable[..., None]) -> None:
    """No bound on seconds, which differ by machine: the time is reported beside the result."""
    driver = make_driver(
        tiny_spec(f"search.trials={count}", "search.sampler=random", "baselines=[]"),
        tmp_path / "trials.jsonl",
        open_storage("journal", tmp_path),
    )
    started = time.perf_counter()
    assert run(driver, slots=32) == count
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    again = make_driver(driver.plan.spec, tmp_path / "trials.jsonl", open_storage("journal", tmp_path))
    assert not again.has_work()
    record_property(f"seconds for {count} trials", seconds)
    record_property("seconds to open them again", time.perf_counter() - started)
    print(f"{count} trials in {seconds:.1f} s, opened again in {time.perf_counter() - started:.1f} s")


# -- progress ---------------------------------------------------------------------------------------------------------


def test_progress_prints_plain_lines_with_count_front_and_time_left(tmp_path: Path) -> None:
    driver, out, now = make_driver(tiny_spec(), tmp_path / "trials.jsonl"), io.StringIO(), [0.0]
    progress = Progress(driver, out, clock=lambda: now[0])
    while (job := driver.next_job()) is not None:
        now[0] += 3.0
        progress.trial(driver.finish(job, made_up_row(job, driver.plan)))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("[1/5] badnets/none/baseline seed 0: ASR ")
    assert lines[0].endswith("| 12 s left")
    assert "| front 1, hypervolume 0." in lines[1]
    assert lines[-1].startswith("[5/5]")
    assert "left" not in lines[-1]
    assert "\x1b" not in out.getvalue()


def test_progress_names_the_end_of_a_long_study_and_reckons_from_its_first_trial(tmp_path: Path) -> None:
    driver, out, now = make_driver(tiny_spec("search.trials=9"), tmp_path / "trials.jsonl"), io.StringIO(), [0.0]
    progress = Progress(driver, out, clock=lambda: now[0])
    now[0] = 50_000.0  # the victims
    progress.trials_begin()
    for _ in range(4):
        job = driver.next_job()
        assert job is not None
        now[0] += 600.0
        progress.trial(driver.finish(job, made_up_row(job, driver.plan)))
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("| 1 h 30 min left"), "the first few say little"
    assert "| 60 min left, until " in lines[3]
    assert finishing_time(3600, datetime(2026, 11, 22, 23, 30)) == "Mon 23 Nov 00:30"


def test_progress_is_quiet_between_lines_but_never_about_a_failure(tmp_path: Path) -> None:
    driver, out = make_driver(tiny_spec("search.trials=9"), tmp_path / "trials.jsonl"), io.StringIO()
    progress = Progress(driver, out, clock=lambda: 0.0)
    for number in range(10):
        job = driver.next_job()
        assert job is not None
        if number == 5:
            progress.trial(driver.fail(job, "RuntimeError: boom"))
        else:
            progress.trial(driver.finish(job, made_up_row(job, driver.plan)))
    lines = out.getvalue().splitlines()
    assert [line.split("]")[0] for line in lines] == ["[1/10", "[6/10", "[10/10"]
    assert lines[1].endswith("FAILED: RuntimeError: boom") or "FAILED: RuntimeError: boom" in lines[1]


def test_a_row_over_all_attacks_says_which_one_it_is() -> None:
    plan = make_plan(tiny_spec(*TWO, "search.per=all", "baselines=[]"))
    job = Job("all/super_ft", "all/super_ft/0000", "search", plan.searches[0].cells[2], {}, False)
    row = {"trial": job.trial, **made_up_row(job, plan)}
    assert describe(row).startswith("all/super_ft/0000 (blended) seed 0: ASR")
    assert describe({**row, "status": "diverged"}).startswith("all/super_ft/0000 (blended) seed 0 DIVERGED: ASR")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min"), (200_000, "55 h 33 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_driver_reads_but_does_not_change_a_plan(tmp_path: Path) -> None:
    plan = make_plan(tiny_spec())
    before = repr(dataclasses.asdict(plan)["spec"])
    run(Driver(plan, Ledger(tmp_path / "trials.jsonl"), open_searches(plan, InMemoryStorage())))
    assert repr(dataclasses.asdict(plan)["spec"]) == before


def test_optuna_trials_say_what_became_of_the_setting_also_after_a_restart(tmp_path: Path) -> None:
    def measure(job: Job, plan: Any) -> dict[str, Any]:
        bad = job.trial.endswith("0001") and job.cell.seed == 7
        worst = {f"{name}{half}": float(name == "asr") for name in ("asr", "clean_accuracy") for half in HALVES}
        row = made_up_row(job, plan, asr_report=0.25 + 0.01 * job.cell.seed, charged_epochs=1.0, train_size=100)
        row |= {"forward_samples": 100, "backward_samples": 100, "input_backward_samples": 0}
        return row | ({"status": "diverged", **worst} if bad else {})

    spec, storage = tiny_spec("seeds=[0, 7]", "baselines=[]"), InMemoryStorage()
    driver = make_driver(spec, tmp_path / "trials.jsonl", storage)
    run(driver, slots=1, measure=measure)
    driver.ledger.close()

    def remarks(storage: BaseStorage) -> list[dict[str, Any]]:
        (search,) = make_driver(spec, tmp_path / "trials.jsonl", storage).searches
        return [trial.user_attrs for trial in search.study.get_trials(deepcopy=False)]

    first, second, *_ = told = remarks(storage)
    assert first["id"] == "badnets/super_ft/0000"
    assert (first["status"], first["diverged"], first["collapsed"]) == ("ok", False, False)
    assert first["seeds"] == [0, 7]
    assert first["asr_report"] == pytest.approx((0.25 + 0.32) / 2)
    assert first["clean_accuracy_report"] == pytest.approx(0.936, abs=0.1)
    assert first["charged_epochs"] == pytest.approx(2.0)
    assert (second["status"], second["diverged"]) == ("diverged", True)
    assert remarks(InMemoryStorage()) == told, "rebuilt from the ledger"


def test_failed_settings_taken_out_of_the_ledger_run_again_under_their_ids(tmp_path: Path) -> None:
    storage, path = InMemoryStorage(), tmp_path / "trials.jsonl"
    driver = make_driver(tiny_spec(), path, storage)

    def fails(job: Job, plan: Plan) -> dict[str, Any]:
        changes = {"status": "failed", "error": "KeyError", "asr_search": None, "clean_accuracy_search": None}
        return made_up_row(job, plan, **(changes if job.role == "search" else {}))

    run(driver, slots=2, measure=fails)
    ids = [row["trial"] for row in driver.ledger.rows() if row["status"] == "failed"]
    assert len(ids) == 4
    driver.ledger.close()
    with Ledger(path) as ledger:
        assert ledger.set_aside_failed() == 4
    again = make_driver(tiny_spec(), path, storage)
    assert (again.done, again.total, again.finished) == (1, 5, False)
    run(again, slots=2)
    assert again.finished
    assert sorted(row["trial"] for row in again.ledger.rows() if row["role"] == "search") == sorted(ids)
    assert again.searches[0].told == 4


def test_a_row_that_could_not_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops the study with how many trials there are; the one whose row it refused is still to come."""
    driver = make_driver(tiny_spec(*MANY), tmp_path / "trials.jsonl")
    total, job = driver.total, driver.next_job()
    while job is not None and job.role != "search":
        driver.finish(job, made_up_row(job, driver.plan))
        job = driver.next_job()
    assert job is not None

    def full(row: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(driver.ledger, "append", full)
    with pytest.raises(OSError, match="No space left"):
        driver.finish(job, made_up_row(job, driver.plan))
    assert driver.total == total
