"""Commands that tell what there is, and write files to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from study.commands.shared import PLUGIN, bad_input_is_one_line


@click.command("list")
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
@bad_input_is_one_line
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


@click.command("recipe")
@click.argument("name")
@bad_input_is_one_line
def print_recipe(name: str) -> None:
    """Print a recipe that ships, word for word, to begin your own with: superft recipe published > mine.yaml"""
    from study.spec.load import recipe_text

    click.echo(recipe_text(name), nl=False)


@click.command()
@click.argument("kind", type=click.Choice(["attack", "defense", "model", "data"]))
@click.argument("name")
@bad_input_is_one_line
def new(kind: str, name: str) -> None:
    """Write NAME.py here, a small working attack, defense, model or data set to start from, and its test."""
    from study.new.write import write_start

    start, test = write_start(kind, name, Path())
    click.echo(f"wrote {start} and {test}; check them: python -m pytest {test}")
