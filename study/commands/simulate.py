"""The command that compares samplers on a table of finished ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from study.commands.shared import PLUGIN, bad_input_is_one_line
from trainables.storage.remote import Place, as_place


@click.command()
@click.argument("places", nargs=-1, required=True, type=as_place, metavar="DIR | LEDGER | TABLE.json ...")
@click.option("--samplers", default="tpe,nsga2,qmc,random", show_default=True, help="See below.")
@click.option("--trials", type=click.IntRange(min=2), default=100, show_default=True, help="Settings of each search.")
@click.option("--seeds", type=click.IntRange(min=2), default=10, show_default=True, help="Repeats of each sampler.")
@click.option("--slots", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at a time.")
@click.option(
    "--per",
    type=click.Choice(["attack", "all"]),
    default="attack",
    show_default=True,
    help="A search for each attack, or one in which each setting is scored over all of them.",
)
@click.option("--defense", help="Whose settings; may be left out where a study searches one alone.")
@click.option("--noise", is_flag=True, help="Tell the searches what one measurement gives, with the luck of its seed.")
@click.option(
    "--grid",
    multiple=True,
    metavar="PARAMETER=V,V,...",
    help="Compare with a grid; what it does not name is as published.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/simulated"), show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes.  [default: one for each processor]")
@PLUGIN
@bad_input_is_one_line
def simulate(
    places: tuple[Place, ...],
    samplers: str,
    trials: int,
    seeds: int,
    slots: int,
    per: str,
    defense: str | None,
    noise: bool,
    grid: tuple[str, ...],
    out: Path,
    jobs: int | None,
    plugins: Sequence[str],
) -> None:
    """Compare samplers on what finished studies measured, in virtual time: nothing is trained.

    The searched settings of the given studies become a table, and a surrogate learns from it what any other setting
    would come to. --samplers names what is compared, each with settings of its search behind it:
    tpe,tpe:startup=qmc,tpe:startup_trials=20,tpe:warm_start=others,random. Writes the result, pictures and the table.
    """
    from study.simulate.command import run_simulation

    def say(done: int, total: int) -> None:
        click.echo(f"{done} of {total} simulated studies", err=True)

    click.echo(
        run_simulation(
            places,
            samplers=samplers,
            trials=trials,
            seeds=seeds,
            slots=slots,
            per=per,
            defense=defense,
            noise=noise,
            grid=grid,
            out=out,
            jobs=jobs,
            plugins=plugins,
            say=say,
        )
    )
