"""Commands that carry a study through: plan it, run it here or on a cluster, put parts together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from study.commands.shared import (
    DOWNLOAD,
    INTERRUPTED,
    METHOD_FAILED,
    PLUGIN,
    SET,
    STORE,
    bad_input_is_one_line,
    resolve,
)
from trainables.storage.remote import Place, as_place


@click.command()
@click.argument("spec", default="quickstart", metavar="[RECIPE | FILE.yaml | -]")
@SET
@click.option("--out", type=as_place, metavar="PLACE", help="Its folder or URI, if it has begun. Default: runs/NAME.")
@DOWNLOAD
@click.option(
    "--nodes", type=click.IntRange(min=1), help="Plan for a cluster of so many nodes instead of this machine."
)
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs of each of the --nodes.  [default: 8]")
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs of each of the --nodes.  [default: 16 for each GPU]")
@click.option(
    "--epoch-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds of 1 E on one GPU (of `superft trial`: its time by its E): says hours, also of each defense.",
)
@PLUGIN
@bad_input_is_one_line
def plan(
    spec: str,
    assignments: Sequence[str],
    out: Place | None,
    download: bool,
    nodes: int | None,
    gpus: int | None,
    cpus: int | None,
    epoch_seconds: float | None,
    plugins: Sequence[str],
) -> None:
    """Print what a study has left to do, what that costs and how long it takes; starts nothing.

    The cost is counted in E: one E is one epoch of training on the whole training set. A data set that is not on this
    machine is planned from its published sizes.
    """
    from study.overview import plan_summary
    from study.plan.slots import Node
    from study.record.remote_folder import open_folder

    if nodes is None and (gpus is not None or cpus is not None):
        raise click.UsageError("--gpus and --cpus are of each node of a cluster: give --nodes too")
    gpus = 8 if gpus is None else gpus
    cluster = [Node(f"node {number + 1}", cpus or max(16 * gpus, 16), gpus) for number in range(nodes or 0)]

    resolved = resolve(spec, assignments, None, download, plugins)
    with open_folder(out or Path("runs") / resolved.name) as folder:
        folder.fetch()
        click.echo(plan_summary(resolved, folder.path, cluster, epoch_seconds))


@click.command()
@click.argument("spec", default="quickstart", metavar="[RECIPE | FILE.yaml | -]")
@SET
@click.option("--out", type=as_place, metavar="PLACE", help="The study's folder, or a URI. Default: runs/NAME.")
@STORE
@DOWNLOAD
@PLUGIN
@click.option("--retry-failed", is_flag=True, help="Run trials that failed before again.")
@click.option("--address", help="Address of a Ray cluster, or auto. Default: start Ray on this machine.")
@bad_input_is_one_line
def run(
    spec: str,
    assignments: Sequence[str],
    out: Place | None,
    store: Place | None,
    download: bool,
    plugins: Sequence[str],
    retry_failed: bool,
    address: str | None,
) -> None:
    """Run a study, or continue it: train its victims, search, and write the report.

    Give the name of a recipe (superft list recipes), a YAML file, or - for YAML on standard input. Ctrl-C stops in
    order; the same command goes on.
    """
    import optuna

    from study.record.remote_folder import open_folder
    from study.report.terminal import front_summary
    from study.run.engine import run_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    resolved = resolve(spec, assignments, store, download, plugins)
    directory = out or Path("runs") / resolved.name
    try:
        outcome = run_study(resolved, directory, address=address, retry_failed=retry_failed)
    except KeyboardInterrupt:  # before the first trial, or while the report was written
        click.echo("stopped; the same command continues the study", err=True)
        sys.exit(INTERRUPTED)
    if outcome.state == "interrupted":
        click.echo(
            f"stopped after {outcome.done} of {outcome.total} trials; the same command continues the study", err=True
        )
        sys.exit(INTERRUPTED)
    with open_folder(directory) as folder:
        folder.fetch(rows_only=True)
        click.echo(front_summary(folder.path))
    for line in outcome.absent:
        click.echo(line)
    if outcome.state == "already_finished":
        click.echo(f"the study in {directory} is finished: {outcome.done} trials; nothing was run")
    click.echo(f"report: {outcome.report}")
    for line in outcome.failed:
        click.echo(f"superft: FAILED {line}", err=True)
    if outcome.failed:
        click.echo("superft: mend what failed; the same command with --retry-failed runs those trials again", err=True)
    if outcome.empty:
        click.echo("superft: no backdoor: no victim of this study holds one, so there is nothing to remove", err=True)
    if outcome.failed or outcome.empty:
        sys.exit(METHOD_FAILED)


@click.command()
@click.argument("spec", default="quickstart", metavar="[RECIPE | FILE.yaml | -]")
@SET
@click.option("--out", metavar="PATH", help="Folder of the study: an absolute path that all nodes see, or a URI.")
@click.option("--store", metavar="PATH", help="Likewise for victims. Default: the cluster's own SUPERFT_STORE.")
@DOWNLOAD
@PLUGIN
@click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    help="HTTP address of the cluster's dashboard.",
)
@click.option("--follow/--no-follow", help="Print the job's output and end with its exit code.  [default: no-follow]")
@click.option("--python", default="python", show_default=True, help="Interpreter on the cluster.")
@bad_input_is_one_line
def submit(
    spec: str,
    assignments: Sequence[str],
    out: str | None,
    store: str | None,
    download: bool,
    plugins: Sequence[str],
    address: str,
    follow: bool,
    python: str,
) -> None:
    """Run a study as a job of a running Ray cluster: pack the code, start it there, say how to follow it.

    The cluster's token is taken from RAY_AUTH_TOKEN or the file named by RAY_AUTH_TOKEN_PATH. Paths in the spec are
    those of the cluster. The same command again continues the study.
    """
    from study.cluster.submit import submit_study

    given = [*assignments, *([] if store is None else [f"store={store}"])]
    resolved = resolve(spec, given, None, download, plugins)
    sys.exit(submit_study(resolved, out, address=address, follow=follow, python=python))


@click.command()
@click.argument("directories", nargs=-1, required=True, type=as_place)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the whole, a new one.")
@click.option("--name", help="Of the whole study.  [default: that of the first part]")
@bad_input_is_one_line
def merge(directories: tuple[Place, ...], out: Path, name: str | None) -> None:
    """Make one study of the parts of one: of one spec, run apart over attacks or seeds, here or elsewhere."""
    from study.record.remote_folder import open_folder
    from study.run.merge import merge_studies

    with ExitStack() as stack:
        folders = [stack.enter_context(open_folder(directory)) for directory in directories]
        for folder in folders:
            folder.fetch()
        found = merge_studies({folder.called: folder.path for folder in folders}, out, name=name)
        click.echo(found.text(len(folders)))
