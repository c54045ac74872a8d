"""The journal in the study's folder: written in pieces, read once, shared with other programs, mended after a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from study.record.optuna_storage import Journal, open_storage, together


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_a_block_is_written_at_its_end_and_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, path = open_storage("journal", tmp_path), tmp_path / "optuna.journal"
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    before, writes, write = lines(path), list[int](), os.write
    monkeypatch.setattr(os, "write", lambda file, content: writes.append(1) or write(file, content))
    with together(storage), together(storage):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
        trial.set_user_attr("id", "one")
        assert lines(path) == before, "a driver killed here has asked nothing"
        assert study.get_trials()[0].user_attrs == {"id": "one"}, "the driver itself sees what it did"
    assert writes == [1]
    assert lines(path) > before
    again = optuna.load_study(study_name=study.study_name, storage=open_storage("journal", tmp_path))
    assert again.get_trials() == study.get_trials()


def test_what_an_error_ends_was_done_and_is_written(tmp_path: Path) -> None:
    storage = open_storage("journal", tmp_path)
    study = optuna.create_study(storage=storage)

    def stumble() -> None:
        with together(storage):
            study.ask()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()
    again = optuna.load_study(study_name=study.study_name, storage=open_storage("journal", tmp_path))
    assert again.get_trials() == study.get_trials()


def test_what_a_full_disk_kept_out_comes_before_what_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage("journal", tmp_path)
    study = optuna.create_study(storage=storage)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("study.record.optuna_storage.append_whole", full)
        with pytest.raises(OSError, match="No space"), together(storage):
            trial = study.ask()
    study.tell(trial, 1.0)
    again = optuna.load_study(study_name=study.study_name, storage=open_storage("journal", tmp_path))
    assert [one.value for one in again.get_trials()] == [1.0]


def test_entries_of_other_programs_are_read_whenever_they_come(tmp_path: Path) -> None:
    storage, path = open_storage("journal", tmp_path), tmp_path / "optuna.journal"
    study = optuna.create_study(storage=storage)
    theirs = optuna.load_study(study_name=study.study_name, storage=JournalStorage(JournalFileBackend(str(path))))
    theirs.set_user_attr("note", "before")
    assert study.user_attrs["note"] == "before"
    with together(storage):
        trial = study.ask()
        theirs.set_user_attr("note", "between")
        trial.set_user_attr("id", "one")
    study.tell(trial, 2.0)
    assert study.user_attrs["note"] == "between"
    for one in (theirs, optuna.load_study(study_name=study.study_name, storage=open_storage("journal", tmp_path))):
        assert [(t.user_attrs, t.value) for t in one.get_trials()] == [({"id": "one"}, 2.0)]
        assert one.user_attrs["note"] == "between"


def test_half_a_line_of_another_writer_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    journal = Journal(path)
    journal.append_logs([{"number": 0}])
    entry = json.dumps({"number": 1}).encode() + b"\n"
    with path.open("ab") as file:
        file.write(entry[:5])
        file.flush()
        assert list(journal.read_logs(0)) == [{"number": 0}]
        file.write(entry[5:])
    assert list(journal.read_logs(1)) == [{"number": 1}]
    assert list(journal.read_logs(0)) == [{"number": 0}, {"number": 1}], "from the beginning, for a copy of the storage"


@pytest.mark.parametrize("damage", [b"{\n", b"\n", b"7\n", b'{"op_code": 4}\n', b"\xff\n"])
def test_a_damaged_line_puts_the_journal_aside(tmp_path: Path, damage: bytes) -> None:
    optuna.create_study(storage=open_storage("journal", tmp_path), study_name="one")
    path = tmp_path / "optuna.journal"
    with path.open("ab") as file:
        file.write(damage)
    assert optuna.study.get_all_study_names(open_storage("journal", tmp_path)) == []
    assert path.with_name("optuna.journal.damaged").read_bytes().endswith(damage)


def test_opening_a_journal_does_not_touch_its_file(tmp_path: Path) -> None:
    path = tmp_path / "optuna.journal"
    Journal(path)
    os.utime(path, ns=(1, 1))
    Journal(path)
    assert path.stat().st_mtime_ns == 1
