"""Commands that look at a machine or a cluster file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from study.commands.shared import BAD_INPUT, STORE, bad_input_is_one_line
from trainables.storage.remote import Place


@click.command()
@STORE
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1, max=600),
    default=10.0,
    show_default=True,
    help="How long the throughput is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object of JSON, and nothing else.")
@bad_input_is_one_line
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


@click.command("check-cluster")
@click.argument("file", type=click.Path(path_type=Path), default="cluster.yaml")
@click.option(
    "--ssh", is_flag=True, help="Also go to every node, as `ray up` will: key, shared folder, token, versions."
)
@bad_input_is_one_line
def check_cluster(file: Path, ssh: bool) -> None:
    """Look for the mistakes in a Ray cluster file that Ray's own schema lets pass."""
    from study.cluster.check_file import check_cluster_file, read_cluster_file
    from study.cluster.reach_nodes import check_nodes

    found = check_cluster_file(file)
    if ssh and not found.mistakes:
        found.mistakes += check_nodes(read_cluster_file(file))
    for line in found.mistakes:
        click.echo(f"{file}: {line}", err=True)
    for line in found.notes:
        click.echo(f"{file}: note: {line}")
    if found.mistakes:
        sys.exit(BAD_INPUT)
    click.echo(f"{file}: ok")


@click.command("cluster-file")
@click.option("--head", required=True, metavar="ADDRESS", help="The head: a machine of some cores.")
@click.option(
    "--workers", default="", metavar="A,B,...", help="The machines with GPUs. Default: the head is one, alone."
)
@click.option("--gpus", type=click.IntRange(min=0), default=8, show_default=True, help="GPUs of each machine.")
@click.option("--shared", required=True, metavar="DIR", help="The folder that all nodes see under this path.")
@click.option("--user", required=True, help="The account that ssh logs in as: one of its own.")
@click.option("--key", default="~/.ssh/id_ed25519", show_default=True, metavar="FILE", help="Its private key, here.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="site.yaml",
    show_default=True,
    help="The file to write, a new one.",
)
@bad_input_is_one_line
def cluster_file(head: str, workers: str, gpus: int, shared: str, user: str, key: str, out: Path) -> None:
    """Write a file for `ray up` with a site's machines: cluster.yaml, its lines CHANGE filled in, and check it.

    SHARED must hold venv/ (an environment with superft) and ray_token (the token, mode 600); the file says more.
    """
    from study.cluster.write_file import Site, write_site_file

    names = [name.strip() for name in workers.split(",")] if workers else []
    write_site_file(Site(head, names, gpus, shared.rstrip("/"), user, key), out)
    click.echo(f"{out}: ok; next: ray up {out}")
