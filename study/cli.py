"""The `superft` command. Heavy modules are imported by the commands that need them, so that --help is instant."""

from __future__ import annotations

import logging
import sys

import click

from study.commands.claims import claims
from study.commands.files import fetch, pull
from study.commands.listings import list_names, new, print_recipe
from study.commands.machine import check_cluster, cluster_file, doctor
from study.commands.own_models import evaluate, export, repair
from study.commands.peers import import_victim
from study.commands.results import cite, front, report, show, table
from study.commands.simulate import simulate
from study.commands.single import trial, trigger
from study.commands.studies import merge, plan, run, submit


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


for command in (
    *(fetch, plan, run, submit, show, pull, merge, front, table, report, cite, claims, simulate),
    *(trial, trigger, repair, export, evaluate, import_victim),
    *(list_names, print_recipe, new, doctor, check_cluster, cluster_file),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
