"""The suites run from outside: by options, by a test file of two lines, from a folder that knows nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from study.new.write import write_start

ROOT = Path(__file__).parents[3]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An empty folder with an attack in it, and beside it an installed package that names our entry point."""
    write_start("attack", "corner_negative", tmp_path)
    package = tmp_path / "site" / "outside-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["pytest11"].items())
    (package / "entry_points.txt").write_text(f"[pytest11]\n{points}")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys, pytest; sys.path[0] = ''; sys.exit(pytest.main(sys.argv[1:]))", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "site")]), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_one_attack_of_a_plugin_is_run_by_name(outside: Path) -> None:
    chosen = ("--attack", "corner_negative", "--plugin", "corner_negative", "-k", "trigger_returns or is_a_setting")
    ran = run(outside, "--pyargs", "superft.testing", *chosen)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_what_cannot_be_run_is_said_in_one_line(outside: Path) -> None:
    (outside / "broken.py").write_text("import no_such_package\n")
    ran = run(outside, "--pyargs", "superft.testing", "--plugin", "broken")
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: plug-in broken: broken.py, line 1: ModuleNotFoundError" in ran.stderr
    ran = run(outside, "--pyargs", "superft.testing", "--attack", "badnet")
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --attack: unknown attack 'badnet': did you mean 'badnets'?" in ran.stderr


def test_the_options_do_not_clash_with_those_of_other_test_runs(outside: Path) -> None:
    (outside / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--model')\n")
    (outside / "test_theirs.py").write_text(
        "def test_theirs(request):\n    assert request.config.getoption('--model') == 'a'\n"
    )
    ran = run(outside, "test_theirs.py", "--model", "a")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_everything_registered_is_collected_where_nothing_is_chosen(outside: Path) -> None:
    ran = run(outside, "--pyargs", "superft.testing", "--collect-only", "-q")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for case in ("attack[badnets-", "defense[super_ft-", "model[preact_resnet18-", "data[digits-", "sampler[tpe-"):
        assert f"test_{case}" in ran.stdout
