"""The command for victims of other people's programs."""

from __future__ import annotations

from pathlib import Path

import click

from study.commands.own_models import DEVICE, WIDTH
from study.commands.shared import DOWNLOAD, SEED, STORE, bad_input_is_one_line
from trainables.storage.remote import Place


@click.command("import")
@click.argument("file", metavar="FILE | FOLDER", type=click.Path(path_type=Path))
@click.option("--dataset", help="The clean data that it was made with, as in a spec.  [default: what the file names]")
@WIDTH
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the study it is for.")
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
    """Put a victim that somebody else made into the store, checked and measured.

    FILE is an attack_result.pt of BackdoorBench, with its folders of PNG files beside it; FOLDER is what
    superft export --format folder writes. No code in them is run. A study takes the same path as attacks: [imported]
    with attack.imported.path.
    """
    from study.run.peers import describe_import
    from study.run.peers import import_victim as imported

    victim = imported(file, dataset=dataset, width=width, seed=seed, store=store, download=download, device=device)
    click.echo(describe_import(victim))
