"""A package of somebody else's, installed into a venv of its own, brings everything that a study can use."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import foreign
from tests.study.processes import ROOT, Place, new_place, rows_of
from trainables.storage.store import META

pytestmark = pytest.mark.timeout(1800)

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "superft-outside"
version = "1.2.3"

[project.entry-points."superft.plugins"]
outside = "outside"

[tool.setuptools]
packages = ["outside"]
"""
FIGURE = '''
"""How many rows there are."""

from matplotlib.figure import Figure

from study.report.figures.registry import Drawing, register


@register("outsiders")
def outsiders(title, tables):
    figure = Figure()
    figure.subplots().bar(["rows"], [len(tables.rows)])
    return Drawing(figure, title="Drawn by an outsider")
'''
SPEC = {
    "name": "outside",
    "dataset": "outside_data",
    "image_size": 8,
    "model": "outside_model",
    "precision": "float32",
    "attacks": ["outside_attack"],
    "attack": {"outside_attack": {"side": 2}},
    "defenses": ["outside_defense"],
    "baselines": ["none"],
    "victim": {"epochs": 40, "batch_size": 32, "lr": 0.05, "poison_rate": 0.3},
    "search": {"trials": 3, "sampler": "outside_sampler", "startup_trials": 1},
}


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with new_place(tmp_path_factory.mktemp("outside")) as place:
        yield place


def installed(place: Place) -> Path:
    """A Python that has the package, and everything that this one has."""
    source = place.folder / "project"
    foreign.put(source, "pyproject.toml", PROJECT)
    modules = {
        "attack": foreign.attack("outside_attack"),
        "defense": foreign.defense("outside_defense"),
        "model": foreign.model("outside_model"),
        "data": foreign.data("outside_data"),
        "sampler": foreign.sampler("outside_sampler"),
        "figure": FIGURE,
    }
    for name, text in modules.items():
        foreign.put(source, f"outside/{name}.py", text)
    foreign.put(source, "outside/__init__.py", f"from outside import {', '.join(modules)}\n")
    home = place.folder / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python3.*/site-packages")
    # What this interpreter has: also where it is itself one of a venv, which system-site-packages would pass over.
    theirs = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "theirs.pth").write_text("\n".join(theirs) + "\n")
    python = home / "bin" / "python"
    install = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", str(source)]
    subprocess.run([str(python), *install], check=True, timeout=300, env=place.environment(), cwd=place.folder)
    assert list(site.glob("superft_outside-1.2.3.dist-info"))
    return python


def test_an_installed_package_brings_all_that_a_study_uses(place: Place) -> None:
    python = installed(place)

    def superft(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "study.cli", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=place.folder,
            env=place.environment() | {"PYTHONPATH": str(ROOT)},
        )

    listed = superft("list", "plugins")
    assert "superft-outside 1.2.3" in listed.stdout, listed.stderr
    for kind in ("attack", "defense", "model", "sampler"):
        assert f"{kind} outside_{kind}" in listed.stdout
    spec = place.folder / "outside.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    out = place.folder / "out"
    ran = superft("run", spec, "--out", out, "--set", "resources.gpus_per_trial=0")
    assert ran.returncode == 0, ran.stderr
    rows = rows_of(out)
    assert len(rows) == 4
    assert {row["plugins"] for row in rows} == {"superft-outside 1.2.3"}
    assert {row["status"] for row in rows} <= {"ok", "backdoor_not_implanted"}
    with (out / "trials.csv").open() as file:
        assert {line["plugins"] for line in csv.DictReader(file)} == {"superft-outside 1.2.3"}
    (plugin,) = yaml.safe_load((out / "study.yaml").read_text())["plugins"]
    assert (plugin["name"], plugin["version"], plugin["path"]) == ("superft-outside", "1.2.3", None)
    (victim,) = place.store.glob("outside_attack-*")
    assert '"outside_model"' in (victim / META).read_text()
    assert (out / "figures" / "outsiders_outside_attack.png").exists()
    assert "Drawn by an outsider" in (out / "report.html").read_text()
    place.wait_until_alone()


BROKEN = 'missing = {}\n        missing["x"]'
MENDED = "return Repair(model)"


@pytest.mark.slow  # three studies, one after the other
def test_a_bug_in_a_file_is_told_once_with_its_place_and_retried_when_mended(place: Place) -> None:
    """By ``--plugin FILE``: the workers have no such file."""
    text = foreign.defense("broken_defense", repair=BROKEN)
    file = foreign.put(place.folder, "plug_broken.py", text)
    line = next(n for n, content in enumerate(text.splitlines(), 1) if 'missing["x"]' in content)
    changes = {"defenses": ["broken_defense"], "baselines": ["none"], "defense": {}}
    spec = place.spec("broken", **changes, search={"trials": 2, "startup_trials": 1})
    out = place.folder / "out"
    ran = place.run("run", spec, "--out", out, "--plugin", file, timeout=600)
    assert ran.code == 3, ran.stderr
    assert "Traceback" not in ran.stderr
    failed = [row for row in rows_of(out) if row["status"] == "failed"]
    assert {row["error"] for row in failed} == {f"KeyError: 'x' (plug_broken.py:{line} in repair)"}
    assert len(failed) == 2
    assert "superft: FAILED badnets/broken_defense: all of its 2 trials failed: KeyError: 'x'" in ran.stderr
    again = place.run("run", spec, "--out", out, "--plugin", file, timeout=600)
    assert (again.code, len(rows_of(out))) == (3, 3)
    before = {row["plugins"] for row in failed}
    Path(file).write_text(foreign.defense("broken_defense", repair=MENDED))
    mended = place.run("run", spec, "--out", out, "--plugin", file, "--retry-failed", timeout=600)
    assert mended.code == 0, mended.stderr
    assert "plug-in plug_broken changed" in mended.stderr
    rows = rows_of(out)
    assert len(rows) == 3
    assert "failed" not in {row["status"] for row in rows}
    assert {row["plugins"] for row in rows if row["defense"] == "broken_defense"}.isdisjoint(before)
    kept = [json.loads(content) for content in (out / "trials.jsonl.retried").read_text().splitlines()]
    assert [row["error"] for row in kept] == [row["error"] for row in failed]
    place.wait_until_alone()
