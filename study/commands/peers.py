"""The command for victims of other people's programs."""

from __future__ import annotations

from pathlib import Path

import click

from study.commands.own_models import DEVICE, FILE, WIDTH
from study.commands.shared import DOWNLOAD, STORE, bad_input_is_one_line
from trainables.storage.remote import Place


@click.command("import")
@click.argument("file", type=FILE)
@click.option("--dataset", help="The clean data that it was made with, as in a spec.  [default: what the file names]")
@WIDTH
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the study it is for.")
@STORE
@DOWNLOAD
@DEVICE
@bad_input_is_one_line
def import_victim(
    file: Path,
    dataset: str | None,
    width: int | None,
    seed: int,
    store: Place | None,
    download: bool,
    device: str | None,
) -> None:
    """Put a victim of BackdoorBench (its attack_result.pt) into the store, checked and measured.

    No code in the file is run. The folders of PNG files belong beside it. A study takes the same file as
    attacks: [imported] with attack.imported.path.
    """
    from study.run.peers import describe_import
    from study.run.peers import import_victim as imported

    victim = imported(file, dataset=dataset, width=width, seed=seed, store=store, download=download, device=device)
    click.echo(describe_import(victim))
