"""How commands end that cannot do what they were asked: exit code, and one line."""

from __future__ import annotations

import errno

import click
import pytest
from click.testing import CliRunner

from study.commands.shared import bad_input_is_one_line
from tests.study.commands import invoke


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/there/report.html"), 2, "/there/report.html: Permission"),
        (OSError(errno.ENOSPC, "No space left on device", "/there/x"), 2, "/there/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_disk_refuses_and_an_interrupt_are_one_line(error: BaseException, code: int, line: str) -> None:
    @click.command()
    @bad_input_is_one_line
    def command() -> None:
        raise error

    ended = CliRunner().invoke(command)
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (code, "", 1)
    assert line in ended.stderr


def test_an_error_of_the_disk_itself_keeps_its_traceback() -> None:
    @click.command()
    @bad_input_is_one_line
    def command() -> None:
        raise OSError(errno.EIO, "Input/output error")

    assert isinstance(CliRunner().invoke(command).exception, OSError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "trial --attack badnets --defense ft --dataset digits --set defense_seeds=[1,2]",
            "--set defense_seeds: a trial",
        ),
        ("trial --attack badnets --defense ft --dataset digits --set defenses=[super_ft]", "--set defenses: a trial"),
        ("plan quickstart --gpus 8", "give --nodes too"),
        ("evaluate --weights pyproject.toml --victim v --width 7", "--width belongs to --arch"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(arguments: str, words: str) -> None:
    ended = invoke(*arguments.split())
    assert ended.exit_code == 2
    assert words in ended.stderr
