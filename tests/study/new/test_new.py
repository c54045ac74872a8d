"""`superft new` writes a file that works as it is, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli import main
from study.new.write import SUITES, write_start
from tests.pytest_in_folder import run_pytest
from trainables.registry import SettingError


@pytest.mark.parametrize("kind", SUITES)
def test_the_file_passes_its_suite_as_written(kind: str, tmp_path: Path) -> None:
    _, test = write_start(kind, "first_try", tmp_path)
    said = run_pytest(tmp_path, test.name)
    assert " passed" in said
    assert "skipped" not in said


@pytest.mark.parametrize("kind", SUITES)
def test_the_file_bears_the_name_everywhere_and_is_formatted(kind: str, tmp_path: Path) -> None:
    start, test = write_start(kind, "first_try", tmp_path)
    for path in (start, test):
        text = path.read_text(encoding="utf-8")
        assert f"my_{kind}" not in text.lower()
        assert "first_try" in text
        assert max(map(len, text.splitlines())) <= 120


def test_the_command_writes_here_and_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["new", "defense", "shaken"])
    assert result.exit_code == 0, result.output
    assert result.output == "wrote shaken.py and test_shaken.py; check them: python -m pytest test_shaken.py\n"
    assert 'name = "shaken"' in Path("test_shaken.py").read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    with pytest.raises(SettingError, match=r"test_mine\.py exists and is left as it is"):
        write_start("attack", "mine", tmp_path)
    assert (tmp_path / "test_mine.py").read_text() == "precious"
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Attack", "must be lower-case letters"),
        ("1st", "must be lower-case letters"),
        ("class", "must be lower-case letters"),
        ("torch", "torch is the name of a module that is installed"),
        ("badnets", "attack 'badnets' exists"),
    ],
)
def test_names_that_cannot_be_used_get_one_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        write_start("attack", name, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_names_end_the_command_with_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["new", "attack", "badnets"]).exit_code == 2
    assert CliRunner().invoke(main, ["new", "figure", "mine"]).exit_code == 2
