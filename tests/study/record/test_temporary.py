"""Claims of study.record.temporary: what a process leaves in the temporary folder is removed once it is dead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from study.record.temporary import scratch_folder


def test_a_scratch_folder_of_the_living_is_left_alone_and_of_the_dead_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "sft-dead").mkdir()
    (tmp_path / "sft-dead" / "file").write_text("x")
    (tmp_path / "sft-dead.lock").touch()
    (tmp_path / "sft-unrelated").mkdir()
    with scratch_folder() as living:
        assert living.is_dir()
        assert not (tmp_path / "sft-dead").exists()
        assert not (tmp_path / "sft-dead.lock").exists()
        with scratch_folder() as other:
            assert living.is_dir()
            assert other != living
        assert living.is_dir()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["sft-unrelated"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "precious").write_text("keep")
    os.symlink(tmp_path / "precious", tmp_path / "sft-x.lock")
    with scratch_folder():
        pass
    assert (tmp_path / "precious").read_text() == "keep"
