"""Claims of a study's folder at a URI: continued from nothing but the URI, one driver at a time, never half a row."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.plan.jobs import make_plan
from study.record.folder import Folder
from study.record.ledger import Ledger
from study.record.object_log import SegmentLog
from study.record.optuna_storage import JOURNAL_FILE, open_storage
from study.record.remote_folder import RemoteFolder, open_folder
from study.record.shipping import Mirror
from study.record.stopped import StudyStoppedError
from study.run.driver import Driver
from study.search.optuna_search import open_searches
from study.spec.yaml_io import SpecError
from tests.remotes import Moody, new_uri
from tests.study.commands import assert_refused, invoke
from tests.study.tiny import make_driver, run, tiny_spec
from trainables.storage.lease import Lease
from trainables.storage.remote import Remote, leads_out

SPEC = tiny_spec("search.trials=8")


class Machine:
    """What a driver on some machine has: a folder of its own, empty at the start."""

    def __init__(self, uri: str, folder: Path) -> None:
        folder.mkdir()
        self.folder = RemoteFolder(uri, folder)
        self.told: list[str] = []
        self.stack = ExitStack()

    def drive(self) -> Driver:
        """As the engine does, up to where Ray would start."""
        self.folder.check(SPEC)
        self.stack.enter_context(self.folder.driving(SPEC, self.told.append))
        self.ledger = self.stack.enter_context(Ledger(self.folder.path / "trials.jsonl"))
        searches = open_searches(make_plan(SPEC), open_storage("journal", self.folder.path))
        return Driver(make_plan(SPEC), self.ledger, searches)

    def flush(self) -> None:
        assert self.folder._mirror is not None
        self.folder._mirror.flush()

    def die(self) -> None:
        """As by SIGKILL: nothing more is shipped, nothing is cleared away, and the claim's process is gone."""
        mirror = self.folder._mirror
        assert mirror is not None
        mirror._failed = True
        mirror._end.set()
        mirror._thread.join()
        remote = self.folder.remote
        name = max(remote.sizes(".driver"))
        claim = json.loads(remote.read(name) or b"")
        release, Lease.release = Lease.release, lambda self: self._end.set()  # type: ignore[method-assign]
        try:
            with pytest.raises(KeyboardInterrupt), self.stack:
                raise KeyboardInterrupt
        finally:
            Lease.release = release  # type: ignore[method-assign]
        remote.write(name, json.dumps({**claim, "pid": 2**22 + 1}).encode())
        shutil.rmtree(self.folder.path)


@pytest.fixture
def uri() -> str:
    return new_uri()


@pytest.fixture
def moody() -> Iterator[str]:
    yield new_uri("moody")
    Moody.refuses = None


def rows_at(uri: str) -> list[dict[str, Any]]:
    content = SegmentLog(Remote(uri), "trials.jsonl", salvage=True).read()
    return [json.loads(line) for line in content.splitlines()]


def test_a_path_is_worked_in_directly(tmp_path: Path) -> None:
    with open_folder(tmp_path / "study") as folder:
        assert isinstance(folder, Folder)
        assert folder.path == tmp_path / "study"
        assert folder.is_new
    assert list(tmp_path.iterdir()) == []


def test_a_copy_of_what_lies_at_a_uri_is_gone_afterwards(uri: str) -> None:
    with open_folder(uri) as folder:
        path = folder.path
        assert path.is_dir()
        assert path.name == "folder"
    assert not path.parent.exists()


@pytest.mark.parametrize("finished", [0, 1, 4, 8])
def test_a_study_killed_here_is_continued_elsewhere_to_exactly_its_trials(
    uri: str, tmp_path: Path, finished: int
) -> None:
    first = Machine(uri, tmp_path / "first")
    driver = first.drive()
    run(driver, slots=2, finishes=finished)
    first.flush()
    shipped = rows_at(uri)
    run(driver, slots=2, finishes=0)  # some more were asked
    first.die()
    second = Machine(uri, tmp_path / "second")
    driver = second.drive()
    assert driver.ledger.rows() == shipped
    assert second.folder.is_new == (finished == 0)
    run(driver)
    assert driver.finished
    second.stack.close()
    trials = [row["trial"] for row in rows_at(uri)]
    assert sorted(trials) == ["badnets/none/baseline", *(f"badnets/super_ft/{number:04d}" for number in range(8))]
    assert rows_at(uri)[: len(shipped)] == shipped


def test_a_search_goes_on_as_in_a_local_folder(uri: str, tmp_path: Path) -> None:
    """Killed at the same moment and continued, both ask for the same settings."""

    def settings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: item for key, item in row.items() if key.startswith("param.")} for row in rows]

    here = make_driver(SPEC, tmp_path / "trials.jsonl", open_storage("journal", tmp_path))
    run(here, slots=1, finishes=4)
    here = make_driver(SPEC, tmp_path / "trials.jsonl", open_storage("journal", tmp_path))
    run(here, slots=1)
    first = Machine(uri, tmp_path / "first")
    run(first.drive(), slots=1, finishes=4)
    first.flush()
    first.die()
    second = Machine(uri, tmp_path / "second")
    run(second.drive(), slots=1)
    second.stack.close()
    assert settings(rows_at(uri)) == settings(here.ledger.rows())


def test_a_driver_killed_before_it_shipped_loses_those_trials_only(uri: str, tmp_path: Path) -> None:
    first = Machine(uri, tmp_path / "first")
    driver = first.drive()
    run(driver, slots=1, finishes=3)
    first.flush()
    assert first.folder._mirror is not None
    first.folder._mirror._end.set()
    first.folder._mirror._thread.join()
    run(driver, slots=1, finishes=3)
    first.die()
    second = Machine(uri, tmp_path / "second")
    driver = second.drive()
    assert len(driver.ledger) == 3
    run(driver)
    second.stack.close()
    trials = [row["trial"] for row in rows_at(uri)]
    assert len(trials) == len(set(trials)) == 9


def test_no_optuna_trial_is_told_before_its_row_is_there(uri: str, tmp_path: Path) -> None:
    first = Machine(uri, tmp_path / "first")
    driver = first.drive()
    for _ in range(6):
        run(driver, slots=1, finishes=1)
        first.flush()
        other = RemoteFolder(uri, tmp_path / "look")
        (tmp_path / "look").mkdir()
        other.fetch()
        study = open_searches(make_plan(SPEC), open_storage("journal", other.path))[0].study
        told = {trial.user_attrs["id"] for trial in study.get_trials(states=(TrialState.COMPLETE,))}
        assert told <= {row["trial"] for row in rows_at(uri)}
        shutil.rmtree(other.path)
    first.stack.close()


def test_appends_between_two_looks_go_as_one_object(uri: str, tmp_path: Path) -> None:
    machine = Machine(uri, tmp_path / "first")
    driver = machine.drive()
    machine.flush()
    assert machine.folder._mirror is not None
    with machine.folder._mirror._busy:  # a slow put
        before = len(Remote(uri).sizes("trials.jsonl.d"))
        run(driver, slots=2, finishes=6)
    machine.flush()
    assert len(Remote(uri).sizes("trials.jsonl.d")) <= before + 2
    assert len(rows_at(uri)) == 6
    machine.stack.close()


def test_a_second_driver_is_refused_and_told_of_the_first(uri: str, tmp_path: Path) -> None:
    first, second = Machine(uri, tmp_path / "first"), Machine(uri, tmp_path / "second")
    first.drive()
    with pytest.raises(SpecError, match=rf"another process runs the study in {uri} \(process {os.getpid()} on "):
        second.drive()
    first.stack.close()
    second.drive()
    second.stack.close()
    assert Remote(uri).sizes(".driver") == {}


def test_a_driver_that_was_followed_writes_no_more(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine slept; when it wakes up, another has the study."""
    monkeypatch.setattr("study.record.shipping.FLUSH_SECONDS", 3600)
    sleeper = Machine(uri, tmp_path / "first")
    driver = sleeper.drive()
    run(driver, slots=1, finishes=3)
    sleeper.flush()
    remote = Remote(uri)
    name = max(remote.sizes(".driver"))
    remote.write(name, json.dumps({**json.loads(remote.read(name) or b""), "pid": 2**22 + 1}).encode())
    heir = Machine(uri, tmp_path / "second")
    heir_driver = heir.drive()
    run(driver, slots=1, finishes=2)
    sleeper.folder._lease._renewed -= 3600
    with pytest.raises(StudyStoppedError, match="another process has taken over"):
        sleeper.stack.close()
    run(heir_driver)
    heir.stack.close()
    trials = [row["trial"] for row in rows_at(uri)]
    assert len(trials) == len(set(trials)) == 9


def test_half_a_line_is_set_aside_and_the_rest_is_kept(uri: str, tmp_path: Path) -> None:
    first = Machine(uri, tmp_path / "first")
    run(first.drive(), slots=1, finishes=3)
    first.flush()
    first.die()
    remote = Remote(uri)
    last = max(remote.sizes("trials.jsonl.d"))
    content = remote.read(last)
    assert content is not None
    remote.write(last, content[:-20])  # storage that does not put whole objects
    second = Machine(uri, tmp_path / "second")
    driver = second.drive()
    assert len(driver.ledger) == 2
    assert driver.ledger.damaged
    run(driver)
    second.folder.publish()
    second.stack.close()
    trials = [row["trial"] for row in rows_at(uri)]
    assert len(trials) == len(set(trials)) == 9
    assert remote.read("trials.jsonl.damaged") is not None


def test_a_journal_that_lost_an_object_is_brought_up_to_the_ledger(uri: str, tmp_path: Path) -> None:
    first = Machine(uri, tmp_path / "first")
    driver = first.drive()
    for _ in range(4):
        run(driver, slots=1, finishes=1)
        first.flush()
    first.die()
    remote = Remote(uri)
    remote.delete([list(remote.sizes(f"{JOURNAL_FILE}.d"))[1]])
    second = Machine(uri, tmp_path / "second")
    run(second.drive())
    second.stack.close()
    trials = [row["trial"] for row in rows_at(uri)]
    assert len(trials) == len(set(trials)) == 9


def test_a_local_study_that_was_copied_there_is_continued(uri: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    run(make_driver(SPEC, local / "trials.jsonl", open_storage("journal", local)), slots=1, finishes=4)
    remote = Remote(uri)
    (local / "study.yaml").write_text(SPEC.to_yaml())
    for name in ("study.yaml", "trials.jsonl", JOURNAL_FILE):
        remote.upload(local / name, name)
    machine = Machine(uri, tmp_path / "first")
    driver = machine.drive()
    assert len(driver.ledger) == 4
    run(driver)
    machine.folder.publish()
    machine.stack.close()
    assert len(rows_at(uri)) == 9
    assert not remote.sizes("trials.jsonl.d"), "in the end each is one plain file"


def test_a_uri_with_another_study_or_other_things_is_refused(uri: str, tmp_path: Path) -> None:
    Machine(uri, tmp_path / "first").folder.remote.write("thesis.tex", b"mine")
    with pytest.raises(SpecError, match=rf"--out {uri} is not empty and holds no study.yaml"):
        Machine(uri, tmp_path / "second").folder.check(SPEC)
    other = new_uri()
    Remote(other).write("study.yaml", tiny_spec("clean_fraction=0.3").to_yaml().encode())
    with pytest.raises(SpecError, match=rf"{other} holds a study made by another spec \(clean_fraction: 0.3 -> 0.1"):
        Machine(other, tmp_path / "third").folder.check(SPEC)


@pytest.mark.parametrize("name", ["figures/../../evil.py", "figures\\..\\evil.py", "../study.yaml"])
def test_an_object_whose_name_leads_out_of_the_folder_is_refused(name: str, uri: str) -> None:
    """A bucket may be a stranger's: what is copied from it stays in the folder that it is copied to."""
    assert leads_out(name)
    remote = Remote(uri)
    remote.write("study.yaml", SPEC.to_yaml().encode())
    if name.startswith("figures"):  # the storage in memory takes `..` at its word only below a folder
        remote._fs.store[f"{remote._root}/{name}"] = remote._fs.store[f"{remote._root}/study.yaml"]
        assert_refused(invoke("report", uri), "would lead out of a folder")


def test_what_changed_is_published_and_what_is_gone_is_removed(uri: str, tmp_path: Path) -> None:
    machine = Machine(uri, tmp_path / "first")
    machine.drive()
    path = machine.folder.path
    (path / "figures").mkdir()
    (path / "figures" / "a.png").write_bytes(b"one")
    (path / "report.html").write_bytes(b"page")
    machine.folder.publish()
    remote = Remote(uri)
    assert remote.read("figures/a.png") == b"one"
    (path / "figures" / "a.png").unlink()
    machine.folder.publish()
    machine.stack.close()
    assert sorted(remote.sizes()) == ["optuna.journal", "report.html", "study.yaml"]


def test_a_copy_has_the_dates_of_the_original(uri: str, tmp_path: Path) -> None:
    machine = Machine(uri, tmp_path / "first")
    driver = machine.drive()
    run(driver, slots=1, finishes=1)
    (machine.folder.path / "report.html").write_bytes(b"page")
    machine.folder.publish()
    time.sleep(0.05)
    run(driver, slots=1, finishes=1)
    machine.stack.close()
    copy = RemoteFolder(uri, tmp_path / "copy")
    copy.path.mkdir()
    copy.fetch()
    assert (copy.path / "report.html").stat().st_mtime_ns < (copy.path / "trials.jsonl").stat().st_mtime_ns


def test_a_copy_of_the_rows_has_the_curves_only_where_they_are_asked_for(uri: str, tmp_path: Path) -> None:
    machine = Machine(uri, tmp_path / "first")
    run(machine.drive(), slots=1, finishes=1)
    (machine.folder.path / "curves").mkdir()
    (machine.folder.path / "curves" / "one.json").write_text("{}")
    machine.folder.publish()
    machine.stack.close()
    for asked in (False, True):
        copy = RemoteFolder(uri, tmp_path / f"copy-{asked}")
        copy.path.mkdir()
        copy.fetch(rows_only=True, curves=asked)
        assert (copy.path / "curves" / "one.json").exists() is asked


def test_storage_that_fails_at_the_start_is_bad_input(moody: str, tmp_path: Path) -> None:
    machine = Machine(moody, tmp_path / "first")
    Moody.refuses = "no such bucket"
    with pytest.raises(SpecError, match=f"cannot write to --out {moody}: .*no such bucket"):
        machine.drive()


def test_storage_that_fails_for_a_while_is_waited_for(
    moody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.record.shipping.FLUSH_SECONDS", 0.01)
    machine = Machine(moody, tmp_path / "first")
    driver = machine.drive()
    Moody.refuses = "busy"
    run(driver, slots=1, finishes=3)
    time.sleep(0.1)
    Moody.refuses = None
    machine.stack.close()
    assert machine.told == []
    assert len(rows_at(moody)) == 3


def test_storage_that_fails_for_good_is_reported_in_one_line(
    moody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.record.shipping.FLUSH_SECONDS", 0.01)
    monkeypatch.setattr("study.record.shipping.PATIENCE_SECONDS", 0.05)
    machine = Machine(moody, tmp_path / "first")
    driver = machine.drive()
    Moody.refuses = "the bucket was removed"
    run(driver, slots=1, finishes=3)
    end = time.monotonic() + 60
    while not machine.told and time.monotonic() < end:
        time.sleep(0.01)
    assert len(machine.told) == 1
    assert "the bucket was removed" in machine.told[0]
    assert "\n" not in machine.told[0]
    with pytest.raises(StudyStoppedError, match="the bucket was removed"):
        machine.stack.close()
    Moody.refuses = None
    again = Machine(moody, tmp_path / "second")
    run(again.drive())
    again.stack.close()
    assert len(rows_at(moody)) == 9


def test_a_failure_at_the_very_end_is_told(moody: str, tmp_path: Path) -> None:
    machine = Machine(moody, tmp_path / "first")
    run(machine.drive(), slots=1, finishes=3)
    Moody.refuses = "quota exceeded"
    with pytest.raises(StudyStoppedError, match=f"the study in {moody} cannot be written: .*quota exceeded"):
        machine.stack.close()


def test_commands_that_look_work_on_a_uri_and_change_nothing_there(uri: str, tmp_path: Path) -> None:
    machine = Machine(uri, tmp_path / "first")
    run(machine.drive())
    machine.stack.close()
    before = Remote(uri).sizes()
    shown = invoke("show", uri)
    assert shown.exit_code == 0, shown.output
    assert f"study tiny in {uri}: 9 of 9 trials done" in shown.stdout
    assert invoke("front", uri).stdout.count("super_ft") > 0
    assert "hypervolume" in invoke("front", uri, uri).stdout
    assert Remote(uri).sizes() == before
    report = invoke("report", uri)
    assert report.stdout.strip() == f"{uri}/report.html"
    assert Remote(uri).read("report.html") is not None
    assert any(name.startswith("figures/") for name in Remote(uri).sizes())


def test_a_uri_without_a_study_is_refused_by_commands_that_look(uri: str) -> None:
    refused = invoke("show", uri)
    assert refused.exit_code == 2
    assert refused.stderr == f"superft: {uri} is no study folder: it has no study.yaml\n"


def test_the_mirror_ships_a_repaired_ledger_anew(uri: str, tmp_path: Path) -> None:
    remote = Remote(uri)
    row = b'{"trial": "a", "attack": "b", "seed": 0, "status": "ok"}\n'
    remote.write("trials.jsonl", row + b"no row\n")
    mirror = Mirror(tmp_path, remote, lambda: None, print)
    mirror.fetch()
    with Ledger(tmp_path / "trials.jsonl"):
        mirror.flush()
    assert remote.read("trials.jsonl") == row
