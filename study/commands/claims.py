"""`superft claims`: what the paper claims beside what the given studies found."""

from __future__ import annotations

import json
from contextlib import ExitStack

import click

from study.commands.shared import bad_input_is_one_line
from trainables.storage.remote import Place, as_place


@click.command()
@click.argument("directories", nargs=-1, required=True, type=as_place, metavar="DIR...")
@click.option("--json", "form", flag_value="json", help="Print one object of JSON, and nothing else.")
@click.option("--markdown", "form", flag_value="markdown", help="Print tables of Markdown, as in docs/reproduction.md.")
@click.option(
    "--same-data",
    "stand_ins",
    multiple=True,
    metavar="OURS=PAPERS",
    help="That a data set of these studies is one of the paper's, e.g. folder:cifar10.zip=cifar10.",
)
@bad_input_is_one_line
def claims(directories: tuple[Place, ...], form: str | None, stand_ins: tuple[str, ...]) -> None:
    """Set the paper's claims beside these studies: reproduced, not reproduced, refuted, or not comparable and why.

    A claim is compared with runs under its own conditions alone: data set, model, width, clean fraction, attack,
    defense, the victims' recipe, and at least three attack seeds.
    """
    from study.claims.judge import judge
    from study.claims.paper import read_paper, read_readings
    from study.claims.runs import Run, read_runs
    from study.claims.text import as_json, as_markdown, as_text
    from study.record.curves import read_curves
    from study.record.folder import LEDGER_FILE, stored_spec
    from study.record.ledger import Ledger
    from study.record.remote_folder import open_folder
    from study.report.terminal import terminal_width

    paper = read_paper()
    readings = read_readings(paper)
    same = _stand_ins(stand_ins, tuple(paper.training_images))
    runs: list[Run] = []
    notes: list[str] = []
    with ExitStack() as stack:
        for directory in directories:
            folder = stack.enter_context(open_folder(directory))
            folder.fetch(rows_only=True, curves=True)
            spec = stored_spec(folder.path)
            rows = Ledger.read(folder.path / LEDGER_FILE).rows()
            runs += read_runs(spec, rows, same, read_curves(folder.path, rows, notes))
    for note in notes:
        click.echo(note, err=True)
    judged = judge(paper, readings, runs)
    if form == "json":
        studies = list(dict.fromkeys(run.study for run in runs))
        click.echo(json.dumps(as_json(paper, readings, judged, studies, same), allow_nan=False))
    elif form == "markdown":
        click.echo(as_markdown(paper, readings, judged, same))
    else:
        click.echo(as_text(paper, readings, judged, terminal_width(), same))


def _stand_ins(given: tuple[str, ...], known: tuple[str, ...]) -> dict[str, str]:
    """``--same-data`` as a mapping (SpecError)."""
    from study.spec.yaml_io import SpecError

    found = {}
    for text in given:
        ours, sign, papers = text.rpartition("=")
        if not sign or not ours or papers not in known:
            raise SpecError(f"--same-data {text!r}: write OURS=PAPERS, where PAPERS is one of {', '.join(known)}")
        found[ours] = papers
    return found
