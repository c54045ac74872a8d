"""Runs the suites over what is registered, without a test file of one's own ::

    pytest --pyargs superft.testing                                         # everything
    pytest --pyargs superft.testing --attack mine --plugin my_module        # one attack of a module of yours

``--attack``, ``--defense``, ``--model``, ``--data`` and ``--sampler`` each take a name and may be given several times;
with none of them everything is tried that is registered and whose data are on this machine. ``--plugin`` takes a module
that can be imported, or whose file lies in the current folder, and imports it first.

pytest finds this module by the entry point of the installed package. The options exist only in a run that names
``superft.testing``, so that no test run of anybody else can clash with them. Settings for a costly method cannot be
given here: write the two-line test file, whose suite has room for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

PACKAGE = "superft.testing"
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
    for module in config.getoption("--plugin", []):
        load(module)
    if any(config.getoption(f"--{kind}", []) for kind in KINDS):
        from superft.testing.registered import check_names  # here: torch, in a pytest run that may not need it

        check_names({kind: config.getoption(f"--{kind}", []) for kind in KINDS})


def load(module: str) -> None:
    """Import a plug-in by its name, also from the current folder, which pytest does not look into by itself.

    Raises:
        pytest.UsageError: it cannot be imported.
    """
    name, file = module.removesuffix(".py"), Path(f"{module.removesuffix('.py').replace('.', '/')}.py")
    try:
        if file.exists() and importlib.util.find_spec(name) is None:
            spec = importlib.util.spec_from_file_location(name, file.resolve())
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        else:
            importlib.import_module(name)
    except Exception as error:
        what = " ".join(str(error).split())
        raise pytest.UsageError(f"--plugin {module} cannot be imported: {type(error).__name__}: {what}") from error
