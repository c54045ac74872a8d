"""The `superft` command. Heavy modules are imported by the commands that need them, so that --help is instant."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from study.claims.command import print_claims
from study.commands.own_models import evaluate, export, repair
from study.commands.shared import BAD_INPUT, DOWNLOAD, INTERRUPTED, METHOD_FAILED, PLUGIN, SET, STORE
from study.commands.shared import bad_input_is_one_line as _bad_input_is_one_line
from trainables.storage.remote import Place, as_place


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="superft")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is going on.")
def main(verbose: bool) -> None:
    """Study which fine-tuning schedule (and which defense) removes a backdoor, and at what price.

    \b
    superft doctor                     is all well on this machine?
    superft run                        the quickstart study, on this machine, in minutes
    superft run my.yaml --out DIR      your own; the same command again continues it
    superft trial --attack badnets --defense super_ft --dataset digits
    superft trigger blended --dataset digits --out blended.png
    superft repair --weights my.pth --arch torchvision:resnet18 --data photos --out new.safetensors
    superft list attacks               what there is
    superft list settings super_ft     what it can be given
    superft recipe published > my.yaml a study to begin your own with
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("superft").setLevel(logging.INFO if verbose else logging.WARNING)
    # What reading a data set takes and leaves out is said also without --verbose.
    logging.getLogger("trainables").setLevel(logging.INFO)


@main.command()
@click.argument("spec", default="quickstart", metavar="[RECIPE | FILE.yaml | -]")
@SET
@click.option("--out", type=as_place, metavar="PLACE", help="The study's folder, or a URI. Default: runs/NAME.")
@STORE
@DOWNLOAD
@PLUGIN
@click.option("--retry-failed", is_flag=True, help="Run trials that failed before again.")
@click.option("--address", help="Address of a Ray cluster, or auto. Default: start Ray on this machine.")
@_bad_input_is_one_line
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
    resolved = _load(spec, assignments, store, download, plugins)
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


@main.command()
@click.option("--attack", help="See superft list attacks.")
@click.option("--defense", help="See superft list defenses.")
@click.option("--dataset", help="See superft list datasets; folder:PATH for your own images.")
@click.option("--model", help="See superft list models.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the victim.  [default: 0]")
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
@_bad_input_is_one_line
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
        from study.run.repeat import compared, repeat_trial

        own = {"--defense": defense, "--dataset": dataset, "--model": model, "--set": assignments, "--plugin": plugins}
        for option, value in own.items():
            if value:
                raise click.UsageError(f"{option} has no meaning with --like: the trial is the study's.")
        row, then = repeat_trial(*like, attack=attack, seed=seed, store=store, device=device)
        click.echo(json.dumps(row, allow_nan=False) if as_json else f"{describe(row)}\n{compared(row, then)}")
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


@main.command()
@click.argument("attack")
@click.option("--dataset", required=True, help="See superft list datasets; folder:PATH for your own images.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The PNG file to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--images", type=click.IntRange(min=1, max=32), default=8, show_default=True, help="Images in a row.")
@SET
@STORE
@DOWNLOAD
@PLUGIN
@click.option("--device", help="For triggers that must be trained: cpu, cuda, ... Default: cuda where there is one.")
@_bad_input_is_one_line
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


@main.command()
@click.argument("directory", type=as_place)
@PLUGIN
@_bad_input_is_one_line
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


@main.command()
@click.argument("directories", nargs=-1, required=True, type=as_place)
@_bad_input_is_one_line
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


@main.command()
@click.argument("directories", nargs=-1, required=True, type=as_place)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the whole, a new one.")
@click.option("--name", help="Of the whole study.  [default: that of the first part]")
@_bad_input_is_one_line
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


@main.command()
@click.argument("directory", type=as_place)
@_bad_input_is_one_line
def show(directory: Place) -> None:
    """Say how far a study is (also while it runs): trials, failures, fronts, hypervolume."""
    from study.overview import overview
    from study.record.remote_folder import open_folder

    with open_folder(directory) as folder:
        folder.fetch(rows_only=True)
        click.echo(overview(folder.path, called=folder.called))


@main.command()
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
@_bad_input_is_one_line
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
            say=say,
        )
    )


@main.command()
@click.argument("spec", default="quickstart", metavar="[RECIPE | FILE.yaml | -]")
@SET
@click.option("--out", type=as_place, metavar="PLACE", help="Its folder or URI, if it has begun. Default: runs/NAME.")
@DOWNLOAD
@click.option(
    "--nodes", type=click.IntRange(min=1), help="Plan for a cluster of so many nodes instead of this machine."
)
@click.option("--gpus", type=click.IntRange(min=0), default=8, show_default=True, help="GPUs of each of the --nodes.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs of each of the --nodes.  [default: 16 for each GPU]")
@PLUGIN
@_bad_input_is_one_line
def plan(
    spec: str,
    assignments: Sequence[str],
    out: Place | None,
    download: bool,
    nodes: int | None,
    gpus: int,
    cpus: int | None,
    plugins: Sequence[str],
) -> None:
    """Print what a study has left to do, what that costs and how long it takes; starts nothing.

    The cost is counted in E: one E is one epoch of training on the whole training set. A data set that is not on this
    machine is planned from its published sizes.
    """
    from study.overview import plan_summary
    from study.plan.slots import Node
    from study.record.remote_folder import open_folder

    cluster = [Node(f"node {number + 1}", cpus or max(16 * gpus, 16), gpus) for number in range(nodes or 0)]

    resolved = _load(spec, assignments, None, download, plugins)
    with open_folder(out or Path("runs") / resolved.name) as folder:
        folder.fetch()
        click.echo(plan_summary(resolved, folder.path, cluster))


@main.command()
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
@_bad_input_is_one_line
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
    resolved = _load(spec, given, None, download, plugins)
    sys.exit(submit_study(resolved, out, address=address, follow=follow, python=python))


@main.command()
@click.argument("directory", type=as_place, required=False)
@_bad_input_is_one_line
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


@main.command("check-cluster")
@click.argument("file", type=click.Path(path_type=Path), default="cluster.yaml")
@_bad_input_is_one_line
def check_cluster(file: Path) -> None:
    """Look for the mistakes in a Ray cluster file that Ray's own schema lets pass."""
    from study.cluster.check_file import check_cluster_file

    found = check_cluster_file(file)
    for line in found.mistakes:
        click.echo(f"{file}: {line}", err=True)
    for line in found.notes:
        click.echo(f"{file}: note: {line}")
    if found.mistakes:
        sys.exit(BAD_INPUT)
    click.echo(f"{file}: ok")


@main.command()
@STORE
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=600),
    default=10.0,
    show_default=True,
    help="How long the throughput is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object of JSON, and nothing else.")
def doctor(store: Place | None, seconds: float, as_json: bool) -> None:
    """Look at this machine: is all there that a study needs, how fast is it, and what should be done.

    A line for each look: ok, warn (studies run, but mind it) or FAIL. Nothing is downloaded, and no look may hang. The
    exit code is the number of problems (FAIL), at most 125.
    """
    from study.doctor.examine import examine, exit_code
    from study.doctor.finding import Options

    found = {}
    for look, finding in examine(Options(None if store is None else str(store), seconds)):
        found[look] = finding
        if not as_json:
            click.echo(finding.line(look))
    problems, warnings = (sum(finding.verdict == verdict for finding in found.values()) for verdict in ("fail", "warn"))
    if as_json:
        looks = {look: vars(finding) for look, finding in found.items()}
        click.echo(json.dumps({"problems": problems, "warnings": warnings, "looks": looks}, allow_nan=False))
    else:
        click.echo(f"problems: {problems}, warnings: {warnings}")
    sys.exit(exit_code(problems))


@main.command("list")
@click.argument(
    "what",
    type=click.Choice(
        [
            "attacks",
            "defenses",
            "datasets",
            "models",
            "recipes",
            "spaces",
            "samplers",
            "trackers",
            "figures",
            "rules",
            "plugins",
            "settings",
        ]
    ),
)
@click.argument("name", required=False)
@PLUGIN
@_bad_input_is_one_line
def list_names(what: str, name: str | None, plugins: Sequence[str]) -> None:
    """List what there is, one per line, the name first.

    superft list settings NAME tells what an attack or a defense can be given: type, range, default, published value,
    whether the search varies it, and what it means.
    """
    from study.listings import listing, settings_text, two_columns
    from study.spec.yaml_io import SpecError
    from trainables.plugins.load import load, load_installed

    load_installed()
    load(plugins)
    if what == "settings":
        if name is None:
            raise SpecError("list settings needs the name of an attack or a defense: superft list settings NAME")
        click.echo(settings_text(name))
        return
    if name is not None:
        raise SpecError(f"list {what} takes no name, got {name!r}; superft list settings {name} tells of one method")
    click.echo(two_columns(listing(what)))


@main.command("recipe")
@click.argument("name")
@_bad_input_is_one_line
def print_recipe(name: str) -> None:
    """Print a recipe that ships, word for word, to begin your own with: superft recipe published > mine.yaml"""
    from study.spec.load import recipe_text

    click.echo(recipe_text(name), nl=False)


@main.command()
@click.argument("kind", type=click.Choice(["attack", "defense", "model", "data"]))
@click.argument("name")
@_bad_input_is_one_line
def new(kind: str, name: str) -> None:
    """Write NAME.py here, a small working attack, defense, model or data set to start from, and its test."""
    from study.new.write import write_start

    start, test = write_start(kind, name, Path())
    click.echo(f"wrote {start} and {test}; check them: python -m pytest {test}")


claims = main.command("claims")(_bad_input_is_one_line(print_claims))
for _command in (repair, export, evaluate):
    main.add_command(_command)


def _load(
    spec: str, assignments: Sequence[str], store: Place | None, download: bool, plugins: Sequence[str] = ()
) -> Any:
    from study.spec.load import load_spec

    given = list(assignments)
    if store is not None and not any(item.startswith("store=") for item in given):
        given.append(f"store={store if isinstance(store, str) else store.expanduser().resolve()}")
    if download:
        given.append("download=true")
    return load_spec(spec, given, plugins)


if __name__ == "__main__":
    main()
