"""Commands about one attack and one defense, without a study: a trial, a picture of a trigger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from study.commands.shared import DOWNLOAD, PLUGIN, SEED, SET, STORE, bad_input_is_one_line
from trainables.storage.remote import Place, as_place


@click.command()
@click.option("--attack", help="See superft list attacks.")
@click.option("--defense", help="See superft list defenses.")
@click.option("--dataset", help="See superft list datasets; folder:PATH for your own images.")
@click.option("--model", help="See superft list models.")
@click.option("--seed", type=SEED, help="Of the victim.  [default: 0]")
@click.option(
    "--like",
    type=(as_place, str),
    metavar="STUDY TRIAL",
    help="Run this trial of a study again, e.g. runs/quickstart badnets/super_ft/0003, and say what differs; --attack "
    "and --seed choose among several victims.",
)
@SET
@STORE
@DOWNLOAD
@PLUGIN
@click.option("--device", help="cpu, cuda, cuda:1, ... Default: cuda where there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print the row as one line of JSON, and nothing else.")
@bad_input_is_one_line
def trial(
    attack: str | None,
    defense: str | None,
    dataset: str | None,
    model: str | None,
    seed: int | None,
    like: tuple[Place, str] | None,
    assignments: Sequence[str],
    store: Place | None,
    download: bool,
    plugins: Sequence[str],
    device: str | None,
    as_json: bool,
) -> None:
    """Run one attack + defense combination in this process, without Ray.

    --set also takes a bare setting of the defense: --set lr_max1=0.3. PyTorch computes on resources.cpus_per_trial
    threads (default 1), as in a study, so the same seed gives the same result in both.
    """
    from study.run.one_trial import describe, run_single

    if like is not None:
        from study.run.repeat import compared, find_trial, run_again

        own = {"--defense": defense, "--dataset": dataset, "--model": model, "--set": assignments, "--plugin": plugins}
        for option, value in own.items():
            if value:
                raise click.UsageError(f"{option} has no meaning with --like: the trial is the study's.")
        found = find_trial(*like, attack=attack, seed=seed)
        row = run_again(found, store=store, device=device)
        click.echo(json.dumps(row, allow_nan=False) if as_json else f"{describe(row)}\n{compared(row, found.row)}")
        return
    if attack is None or defense is None or dataset is None:
        options = {"--attack": attack, "--defense": defense, "--dataset": dataset}
        missing = next(option for option, value in options.items() if value is None)
        raise click.UsageError(f"Missing option '{missing}'.")
    row = run_single(
        attack=attack,
        defense=defense,
        dataset=dataset,
        model=model,
        seed=seed or 0,
        assignments=assignments,
        store=store,
        download=download,
        plugins=plugins,
        device=device,
    )
    if as_json:
        click.echo(json.dumps(row, allow_nan=False))
        return
    click.echo(describe(row))


@click.command()
@click.argument("attack")
@click.option("--dataset", required=True, help="See superft list datasets; folder:PATH for your own images.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The PNG file to write.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--images", type=click.IntRange(min=1, max=32), default=8, show_default=True, help="Images in a row.")
@SET
@STORE
@DOWNLOAD
@PLUGIN
@click.option("--device", help="For triggers that must be trained: cpu, cuda, ... Default: cuda where there is one.")
@bad_input_is_one_line
def trigger(
    attack: str,
    dataset: str,
    out: Path,
    seed: int,
    images: int,
    assignments: Sequence[str],
    store: Place | None,
    download: bool,
    plugins: Sequence[str],
    device: str | None,
) -> None:
    """Draw a trigger: clean images, triggered ones, and the difference (x10).

    --set also takes a bare setting of the attack: --set alpha=0.3. A trigger that is learned with its victim (lf,
    inputaware) is drawn from the stored victim, which is trained first if there is none.
    """
    from study.run.trigger_picture import write_trigger_picture

    picture = write_trigger_picture(
        attack=attack,
        dataset=dataset,
        out=out,
        seed=seed,
        count=images,
        assignments=assignments,
        store=store,
        download=download,
        plugins=plugins,
        device=device,
    )
    click.echo(f"picture: {picture}")
