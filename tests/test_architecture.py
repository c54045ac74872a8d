"""Arrows between the rooms go down only: study -> search_spaces -> trainables."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

ROOT = Path(__file__).parent.parent
ROOMS = ("study", "search_spaces", "trainables")
# Room -> what no file of it may import, not even inside a function.
FORBIDDEN = {
    "trainables": {"study", "search_spaces", "ray", "optuna", "pydantic", "click", "rich", "pandas", "plotly", "tests"},
    "search_spaces": {"study", "ray", "pydantic", "click", "rich", "pandas", "plotly", "tests"},
    "study": {"tests"},
}
MAY_IMPORT = {("trainables/tune.py", "ray")}
# Words that are methods of ours and ordinary words as well.
ORDINARY = {"none", "clean"}
# A figure may mark the methods that people compare with; everything else takes names from the rows and the spec.
MAY_NAME_METHODS = {"study/report/figures/front.py"}


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that a module imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down_only(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {package}"
        for path in files(room)
        for package in set(imported(ast.parse(path.read_text())))
        if package in FORBIDDEN[room] and (str(path.relative_to(ROOT)), package) not in MAY_IMPORT
    ]
    assert wrong == []


def test_a_wrong_arrow_would_be_seen() -> None:
    source = "def f():\n    from study.plan.jobs import make_plan\n    import ray.tune as t\n"
    assert set(imported(ast.parse(source))) == {"study", "ray"}


def test_nothing_edits_the_path_or_runs_at_import() -> None:
    for room in ROOMS:
        for path in files(room):
            text = path.read_text()
            assert "sys.path" not in text, path
            assert ".cuda()" not in text, path
            for node in ast.parse(text).body:
                plain = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
                assert not plain, f"{path}:{node.lineno} runs at import"


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String constants that are no docstrings."""
    documented = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documented.add(id(first.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.lineno, node.value


def test_study_knows_no_attack_or_defense_by_name() -> None:
    methods = {*ATTACKS.names(), *DEFENSES.names()} - ORDINARY
    wrong = [
        f"{path.relative_to(ROOT)}:{line} names {text!r}"
        for path in files("study")
        if str(path.relative_to(ROOT)) not in MAY_NAME_METHODS
        for line, text in strings(ast.parse(path.read_text()))
        if text in methods
    ]
    assert wrong == []


PROGRAM = """
import importlib, pkgutil, sys

for name in sys.argv[1].split(","):
    sys.modules[name] = None  # importing it fails, as if it were not installed
import trainables
for module in pkgutil.walk_packages(trainables.__path__, "trainables."):
    if module.name != "trainables.tune":
        importlib.import_module(module.name)
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
print(len(ATTACKS.names()) + len(DEFENSES.names()))
"""


def test_trainables_work_where_only_torch_is_installed() -> None:
    blocked = "ray,optuna,pydantic,click,rich,pandas,plotly,matplotlib,sklearn,study,search_spaces"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == len(ATTACKS.names()) + len(DEFENSES.names())
