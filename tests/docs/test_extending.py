"""The files that the page about extending prints work as they stand, under the suites that it speaks of."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest

from study.plan.jobs import make_plan
from study.report.write import write_report
from study.spec.load import make_spec
from study.spec.yaml_io import parse_yaml
from superft.testing.registered import KINDS
from tests.docs.pages import blocks
from tests.pytest_in_folder import run_pytest
from tests.study.rows import made_up_study
from tests.study.tiny import tiny_spec
from trainables.plugins.load import load

PAGE = "docs/extending.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every block that names its file in the first line, saved under that name."""
    folder = tmp_path_factory.mktemp("mine")
    for code in blocks(PAGE, "python"):
        if named := re.match(r"# (\w+\.py)\n", code):
            (folder / named[1]).write_text(code)
    return folder


def suites(folder: Path, *arguments: str) -> str:
    return run_pytest(folder, "-p", "superft.testing.options", *arguments)


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("defense", "smaller_head", "smaller_head"),
        ("model", "two_stages", "two_stages"),
        ("data", "halves", "halves"),
        ("sampler", "patient_tpe", "patient"),
    ],
)
def test_what_the_page_prints_passes_its_suite(kind: str, name: str, file: str, folder: Path) -> None:
    said = suites(folder, "--pyargs", "superft.testing", f"--{kind}", name, "--plugin", file)
    assert f"\n{len(KINDS[kind].checks)} passed" in said


def test_the_test_file_of_two_lines_runs_the_suite(folder: Path) -> None:
    assert f"\n{len(KINDS['attack'].checks)} passed" in suites(folder, "test_corner_dot.py")


def test_the_package_on_the_page_names_the_group_that_is_looked_for() -> None:
    (text,) = blocks(PAGE, "toml")
    (group,) = tomllib.loads(text)["project"]["entry-points"]
    from trainables.plugins.load import GROUP

    assert group == GROUP
    for name, module in tomllib.loads(text)["project"]["entry-points"][group].items():
        assert importlib.metadata.EntryPoint(name, module, group).module == module


@pytest.mark.usefixtures("_as_before")
def test_the_spec_on_the_page_is_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from study.new.write import write_start

    (text,) = blocks(PAGE, "yaml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "here").mkdir()
    write_start("attack", "corner_square", tmp_path / "here")
    write_start("defense", "shaken", tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "here")
    plan = make_plan(make_spec(parse_yaml(text, PAGE)))
    assert {cell.attack for cell in plan.cells} == {"corner_square"}


@pytest.mark.usefixtures("_as_before")
def test_the_figure_on_the_page_is_in_the_report(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text(tiny_spec().to_yaml())
    rows = made_up_study(attacks=("badnets",), trials=4)
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(str(folder))
    load(["cost"])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "What a repair costs" in page
    assert "Each point is a trial." in page
    assert (tmp_path / "figures" / "cost_badnets.png").stat().st_size > 1000
