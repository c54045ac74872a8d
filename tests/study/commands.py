"""`superft` in this process, for tests of its commands."""

from __future__ import annotations

from click.testing import CliRunner, Result

from study.cli import main


def invoke(*arguments: object) -> Result:
    """What `superft ARGUMENTS` did; an exception that is no exit is raised."""
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def assert_refused(result: Result, *named: str) -> None:
    """Exit code 2, one line on standard error that holds all of ``named``, nothing on standard output."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for text in named:
        assert text in result.stderr
