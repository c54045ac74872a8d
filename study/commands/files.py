"""Commands that bring files to a machine: data before a study, a study's folder after it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from study.commands.shared import PLUGIN, bad_input_is_one_line

LINE_SECONDS = 10.0  # between lines where the output is no terminal


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="DATASET...")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of data files.  [default: SUPERFT_DATA, else the user's cache folder]",
)
@PLUGIN
@bad_input_is_one_line
def fetch(names: tuple[str, ...], root: Path | None, plugins: tuple[str, ...]) -> None:
    """Fetch data sets and make them ready, without a study: superft fetch cifar10 gtsrb --root /shared/data.

    What is there already is not fetched again, and a download that was cut off goes on where it stopped. Every file's
    checksum must be the published one. Studies find the data by SUPERFT_DATA, or data_root in the spec.
    """
    from trainables.data.load import default_root
    from trainables.data.stage import check_fetchable, stage
    from trainables.plugins.load import load

    load(plugins)
    for name in names:  # all of them before the first byte
        check_fetchable(name)
    bar = _Bar()
    where = (root or default_root()).expanduser()
    for name in dict.fromkeys(names):
        stage(name, where, bar.say, bar.progress)


@click.command()
@click.argument("place")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@bad_input_is_one_line
def pull(place: str, folder: Path | None) -> None:
    """Bring a study here, with its report: superft pull s3://bucket/study, or superft pull HOST:/shared/study [FOLDER].

    It comes whole or not at all. An older copy of the same study is replaced. HOST is a name that ssh knows; rsync
    copies, or else scp.
    """
    from study.cluster.pull import pull as pull_study

    click.echo(pull_study(place, folder).text())


class _Bar:
    """How far a download is: on a terminal one line that changes, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._terminal, self._said = sys.stderr.isatty(), time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        click.echo(("\r\x1b[2K" if self._terminal else "") + text, err=True)

    def progress(self, name: str, have: int, total: int | None) -> None:
        """See `trainables.data.archives.Progress`."""
        from study.record.words import in_bytes

        now = time.monotonic()
        if now - self._said < (0.1 if self._terminal else LINE_SECONDS):
            return
        self._said = now
        text = f"{name}: {in_bytes(have)}" + (f" of {in_bytes(total)}" if total else "")
        click.echo(f"\r\x1b[2K{text}" if self._terminal else text, err=True, nl=not self._terminal)
