"""Runs the suites over what is registered, without a test file of one's own ::

    pytest --pyargs superft.testing                                         # everything
    pytest --pyargs superft.testing --attack mine --plugin my_module        # one attack of a module of yours

``--attack``, ``--defense``, ``--model``, ``--data`` and ``--sampler`` each take a name and may be given several times;
with none of them everything is tried that is registered and whose data are on this machine. ``--plugin`` takes what it
takes for ``superft run``: a module that can be imported or lies in the current folder, or the path of a file or folder.
Installed plug-ins (entry-point group ``superft.plugins``) are there without it.

pytest finds this module by the entry point of the installed package. The options exist only in a run that names
``superft.testing``, so that no test run of anybody else can clash with them. Settings for a costly method cannot be
given here: write the two-line test file, whose suite has room for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = "superft.testing"
HERE = Path(__file__).parent
KINDS = ("attack", "defense", "model", "data", "sampler")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(parser: pytest.Parser, args: Sequence[str]) -> None:
    """Options are added here and not in ``pytest_addoption``, because only here it is known what will be run."""
    if not any(argument.split("::")[0].startswith(PACKAGE) for argument in args):
        return
    group = parser.getgroup("superft", "what the suites of superft.testing are run over")
    for kind in KINDS:
        group.addoption(f"--{kind}", action="append", default=[], metavar="NAME", help=f"a registered {kind}")
    group.addoption("--plugin", action="append", default=[], metavar="MODULE", help="import this module first")


def pytest_configure(config: pytest.Config) -> None:
    """Import the plug-ins and refuse unknown names before anything is collected."""
    config.addinivalue_line("markers", "slow: takes minutes")
    wanted = {kind: config.getoption(f"--{kind}", []) for kind in KINDS}
    plugins = config.getoption("--plugin", [])
    if plugins or any(wanted.values()):
        from superft.testing.registered import check_names  # here: torch, in a pytest run that may not need it
        from trainables.plugins.load import load
        from trainables.registry import SettingError

        try:
            load(plugins)
            check_names(wanted)
        except SettingError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kinds that nobody asked for leave no skipped test behind."""
    items[:] = [item for item in items if not (item.path.parent == HERE and item.name.endswith("[NOTSET]"))]
