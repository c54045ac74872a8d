"""Commands that look at a study: how far it is, its front, its report, what to cite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack

import click

from study.commands.shared import PLUGIN, bad_input_is_one_line
from trainables.storage.remote import Place, as_place


@click.command()
@click.argument("directory", type=as_place)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts; its keys stand in the manual.")
@bad_input_is_one_line
def show(directory: Place, as_json: bool) -> None:
    """Say how far a study is (also while it runs): nodes, slots, trials, victims, time left, fronts, hypervolume."""
    from study.record.remote_folder import open_folder
    from study.watch.state import state_of
    from study.watch.words import overview

    with open_folder(directory) as folder:
        folder.fetch(rows_only=True)
        if as_json:
            click.echo(json.dumps(state_of(folder.path, called=folder.called).as_json(), indent=1, allow_nan=False))
        else:
            click.echo(overview(folder.path, called=folder.called))


@click.command()
@click.argument("directories", nargs=-1, required=True, type=as_place)
@bad_input_is_one_line
def front(directories: tuple[Place, ...]) -> None:
    """Print the Pareto front of a study, or compare the fronts of several."""
    from study.record.remote_folder import open_folder
    from study.report.terminal import compare_summary, front_summary

    with ExitStack() as stack:
        folders = [stack.enter_context(open_folder(directory)) for directory in directories]
        for folder in folders:
            folder.fetch(rows_only=True)
        if len(folders) == 1:
            click.echo(front_summary(folders[0].path))
        else:
            click.echo(compare_summary({folder.called: folder.path for folder in folders}))


@click.command()
@click.argument("directory", type=as_place)
@click.option("--less", metavar="LABEL", help="Also what this repair has more than each other one in the same run.")
@click.option(
    "--aftermath", is_flag=True, help="What became of the repaired models instead: does the backdoor come back?"
)
@bad_input_is_one_line
def table(directory: Place, less: str | None, aftermath: bool) -> None:
    """Print the repairs of a study beside each other, as Markdown: backdoors gone, ASR, clean accuracy.

    Baselines and published points alone, on the whole test set: none of them was chosen with the ASR at hand. ASR and
    accuracy are the least and the most of the runs. Broken: runs that failed, diverged, or left a model that classifies
    next to nothing.
    """
    from study.record.folder import LEDGER_FILE, stored_spec
    from study.record.ledger import Ledger
    from study.record.remote_folder import open_folder
    from study.report.aftermath import aftermath_markdown
    from study.report.repairs import repairs_markdown
    from study.spec.yaml_io import SpecError

    if aftermath and less is not None:
        raise SpecError("--less is about repairs, --aftermath about what became of them: give one of the two")
    with open_folder(directory) as folder:
        folder.fetch(rows_only=True)
        spec = stored_spec(folder.path)
        frame = Ledger.read(folder.path / LEDGER_FILE).to_frame()
    try:
        if aftermath:
            click.echo(aftermath_markdown(frame))
        else:
            click.echo(repairs_markdown(frame, (*spec.baselines, *spec.defenses), less))
    except ValueError as problem:
        raise SpecError(str(problem)) from None


@click.command()
@click.argument("directory", type=as_place)
@PLUGIN
@bad_input_is_one_line
def report(directory: Place, plugins: Sequence[str]) -> None:
    """Write report.html, the figures and the tables of a study again, from its ledger."""
    from study.record.folder import stored_spec
    from study.record.remote_folder import open_folder
    from study.report.write import write_report
    from trainables.plugins.load import load

    load(plugins)
    with open_folder(directory) as folder:
        folder.fetch()
        stored_spec(folder.path)
        written = write_report(folder.path)
        folder.publish()
        click.echo(f"{folder.called}/{written.name}")


@click.command()
@click.argument("directory", type=as_place, required=False)
@bad_input_is_one_line
def cite(directory: Place | None) -> None:
    """Print the references (BibTeX) of what a study used: attacks, defenses, tools. Without DIRECTORY: of superft."""
    from study.citations import references
    from study.record.remote_folder import open_folder

    if directory is None:
        click.echo(references())
        return
    with open_folder(directory) as folder:
        folder.fetch(rows_only=True)
        click.echo(references(folder.path))
