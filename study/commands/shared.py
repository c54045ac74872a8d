"""What the files of commands share: exit codes, errors as one line, options that several commands take."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from study.spec.seeds import LARGEST_SEED
from trainables.storage.remote import Place, RemoteError, as_place

P = ParamSpec("P")
R = TypeVar("R")

# Exit codes. 0: all went well. 1: a victim of `trial` diverged. 75 (`stopped.TRY_LATER`): folder, store, database or
# cluster failed, and the same command goes on once that is repaired. `doctor` ends with its number of problems.
BAD_INPUT = 2
# A victim, or a whole search or baseline, has no result; no victim holds a backdoor, or one that must does not; or the
# code of a plug-in raised.
METHOD_FAILED = 3
INTERRUPTED = 130
# What a folder or a disk refuses, so that no traceback can help: rights, space, a folder in a file's place.
NOT_OURS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
    }
)

SEED = click.IntRange(min=0, max=LARGEST_SEED)


def bad_input_is_one_line(command: Callable[P, R]) -> Callable[P, R]:
    """Errors end the command with one line on standard error and an exit code, see above."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from study.record.stopped import TRY_LATER, StudyStoppedError
        from study.record.victims import NoBackdoorError
        from study.spec.yaml_io import SpecError
        from trainables.data.images import DataError
        from trainables.models.build import ModelError
        from trainables.plugins.errors import of_plugin
        from trainables.registry import SettingError
        from trainables.storage.store import StoreUnavailableError
        from trainables.training.loop import DivergedError

        try:
            return command(*args, **kwargs)
        except (SpecError, SettingError, DataError, ModelError) as error:
            click.echo(f"superft: {' '.join(str(error).split())}", err=True)
            sys.exit(BAD_INPUT)
        except (StudyStoppedError, StoreUnavailableError, RemoteError) as error:
            click.echo(f"superft: {error}; the same command goes on once that is repaired", err=True)
            sys.exit(TRY_LATER)
        except OSError as error:
            if error.errno not in NOT_OURS:
                raise
            click.echo(f"superft: {error.filename or 'a file'}: {error.strerror}", err=True)
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("superft: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except NoBackdoorError as error:
            click.echo(f"superft: {error}", err=True)
            sys.exit(METHOD_FAILED)
        except DivergedError as error:  # of a repair it is a result; without a victim there is none
            click.echo(f"superft: the victim cannot be trained: {error}; lower victim.lr", err=True)
            sys.exit(1)
        except Exception as error:
            if (line := of_plugin(error)) is None:
                raise
            if logging.getLogger("superft").isEnabledFor(logging.INFO):
                traceback.print_exc()
            click.echo(f"superft: {line}; superft -v says more", err=True)
            sys.exit(METHOD_FAILED)

    return wrapped


SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the spec, e.g. search.trials=64, attack.badnets.size=4, defense.super_ft.lr_max1=0.3.",
)
STORE = click.option(
    "--store",
    type=as_place,
    metavar="PLACE",
    envvar="SUPERFT_STORE",
    help="Where trained victims are kept and shared: a folder, or a URI (s3://bucket/folder). "
    "Default: SUPERFT_STORE, else the user's cache folder.",
)
PLUGIN = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="MODULE",
    help="A module, file or folder that registers attacks, defenses, models, ...; also: plugins in the spec.",
)
DOWNLOAD = click.option("--download", is_flag=True, help="Fetch the data set if its files are missing.")


def resolve(
    spec: str, assignments: Sequence[str], store: Place | None, download: bool, plugins: Sequence[str] = ()
) -> Any:
    """The spec of a recipe, a file or standard input (``-``), with what the options of a command say."""
    from study.spec.load import load_spec

    given = list(assignments)
    if store is not None and not any(item.startswith("store=") for item in given):
        given.append(f"store={store if isinstance(store, str) else store.expanduser().resolve()}")
    if download:
        given.append("download=true")
    return load_spec(spec, given, plugins)
