"""A database behind a storage in memory keeps nobody waiting, loses nothing that a ledger has, and spoils nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from study.record.behind import WRITERS, Behind
from study.run.driver import Driver
from tests.study.tiny import make_driver, run, tiny_spec

pytestmark = pytest.mark.timeout(120)  # a writer that waits for ever would

TRIALS = 30


class Gated(InMemoryStorage):
    """A database whose writes of trials wait until ``gate`` is open, or fail; ``calls`` are those that came through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.calls: list[str] = []
        self.broken = False

    def _pass(self, name: str) -> None:
        self.gate.wait()
        if self.broken:
            raise StorageInternalError("the server\nis gone")
        self.calls.append(name)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._pass("create")
        return super().create_new_trial(study_id, template_trial)

    def set_trial_param(self, *arguments: Any) -> None:
        self._pass("param")
        super().set_trial_param(*arguments)

    def set_trial_user_attr(self, *arguments: Any) -> None:
        self._pass("user_attr")
        super().set_trial_user_attr(*arguments)

    def set_trial_system_attr(self, *arguments: Any) -> None:
        self._pass("system_attr")
        super().set_trial_system_attr(*arguments)

    def set_trial_state_values(self, *arguments: Any) -> bool:
        self._pass("state")
        return super().set_trial_state_values(*arguments)


def driver_over(storage: BaseStorage, path: Path) -> Driver:
    return make_driver(tiny_spec(f"search.trials={TRIALS}", "baselines=[]"), path / "trials.jsonl", storage)


def trials_of(database: BaseStorage) -> list[FrozenTrial]:
    return optuna.load_study(study_name="tiny/badnets/super_ft", storage=database).get_trials()


def settings(driver: Driver) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key.startswith("param.")} for row in driver.ledger.rows()]


def test_a_database_that_does_not_answer_keeps_no_search_waiting(tmp_path: Path) -> None:
    database = Gated()
    storage = Behind(database)
    driver = driver_over(storage, tmp_path)
    assert run(driver) == TRIALS, "asked and told to the end while not one write has come back"
    assert database.calls == []
    database.gate.set()
    storage.close()
    assert storage.waiting == 0
    trials = trials_of(database)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
    rows = {row["trial"]: row for row in driver.ledger.rows()}
    assert {trial.user_attrs["id"] for trial in trials} == set(rows)
    for trial in trials:
        row = rows[trial.user_attrs["id"]]
        assert trial.values == [row["asr_search"], row["clean_accuracy_search"]]
        # What optuna-dashboard shows beside them: E, status, and the half that no search reads.
        assert trial.user_attrs["charged_epochs"] == row["charged_epochs"]
        assert trial.user_attrs["status"] == row["status"]
        assert trial.user_attrs["asr_report"] == row["asr_report"]
        assert trial.user_attrs["clean_accuracy_report"] == row["clean_accuracy_report"]


def test_trials_that_had_to_wait_are_written_once_and_whole(tmp_path: Path) -> None:
    database = Gated()
    storage = Behind(database, writers=2)
    run(driver_over(storage, tmp_path))
    database.gate.set()
    storage.close()
    assert database.calls.count("create") == TRIALS
    # Only the trials that the writers held while the gate was closed were not whole yet.
    assert database.calls.count("state") <= 2
    assert database.calls.count("param") <= 2 * 4


def test_the_settings_are_those_of_a_storage_that_is_written_at_once(tmp_path: Path) -> None:
    database = Gated()
    database.gate.set()
    (tmp_path / "behind").mkdir()
    storage = Behind(database)
    behind, direct = driver_over(storage, tmp_path / "behind"), driver_over(InMemoryStorage(), tmp_path)
    run(behind)
    run(direct)
    storage.close()
    assert settings(behind) == settings(direct)


def test_what_a_killed_driver_left_unwritten_comes_from_the_ledger(tmp_path: Path) -> None:
    database = Gated()
    run(driver_over(Behind(database), tmp_path), finishes=12)  # its threads never get through, as if they were killed
    assert trials_of(database) == []
    with_rows = database.gate = threading.Event()  # those threads wait for the old one for ever
    with_rows.set()
    storage = Behind(database)
    again = driver_over(storage, tmp_path)
    run(again)
    storage.close()
    ids = [row["trial"] for row in again.ledger.rows()]
    assert len(ids) == len(set(ids)) == TRIALS
    trials = trials_of(database)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(trial.user_attrs["id"] for trial in trials) == sorted(ids)


def test_running_trials_of_a_database_are_taken_up_again(tmp_path: Path) -> None:
    database = Gated()
    database.gate.set()
    storage = Behind(database)
    first = driver_over(storage, tmp_path)
    run(first, finishes=5)
    lost = first.next_job()
    assert lost is not None
    storage.close()
    again = driver_over(Behind(database), tmp_path)
    jobs = [again.next_job() for _ in range(3)]
    assert (lost.trial, lost.settings) in [(job.trial, job.settings) for job in jobs if job is not None]


@pytest.mark.parametrize("writers", [1, WRITERS])
def test_a_database_that_fails_is_said_with_the_next_change_and_at_the_end(tmp_path: Path, writers: int) -> None:
    database = Gated()
    database.broken = True
    database.gate.set()
    storage = Behind(database, writers)
    driver = driver_over(storage, tmp_path)
    with pytest.raises(StorageInternalError, match=r"^the server is gone$"):
        run_for_ever(driver)
    with pytest.raises(StorageInternalError, match="the server is gone"):
        storage.close()


def run_for_ever(driver: Driver) -> None:
    """Until its writers have met the database."""
    while True:
        run(driver, finishes=1)


def test_artifacts_and_notes_of_others_stay(tmp_path: Path) -> None:
    database = Gated()
    database.gate.set()
    storage = Behind(database)
    driver = driver_over(storage, tmp_path)
    run(driver, finishes=5)
    storage.close()
    study = optuna.load_study(study_name="tiny/badnets/super_ft", storage=database)
    running = next(trial for trial in study.get_trials() if trial.state == TrialState.RUNNING)
    # As `optuna.artifacts.upload_artifact` and optuna-dashboard write them, from another process.
    database.set_trial_system_attr(running._trial_id, "artifacts:one", '{"filename": "curve.png"}')
    database.set_study_system_attr(study._study_id, "dashboard:note_str:0", "look at this one")
    storage = Behind(database)
    run(driver_over(storage, tmp_path))
    storage.close()
    (after,) = [trial for trial in trials_of(database) if trial.number == running.number]
    assert after.state == TrialState.COMPLETE
    assert after.system_attrs["artifacts:one"] == '{"filename": "curve.png"}'
    assert database.get_study_system_attrs(study._study_id)["dashboard:note_str:0"] == "look at this one"
