"""The house: arrows between rooms and between files go down only, and no circle of files exists."""

import ast
import re
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import pytest

from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

ROOT = Path(__file__).parent.parent
ROOMS = ("superft", "study", "search_spaces", "trainables")
# The rooms of each package from the top floor down; a file imports from its own room and from floors below it.
FLOORS = {
    "study": (
        *(
            {"cli"},
            {"commands"},
            {"overview", "watch", "listings", "new", "citations", "doctor", "simulate", "claims"},
            {"run"},
            {"report", "tracking", "cluster"},
            {"search"},
        ),
        *({"results"}, {"plan"}, {"record"}, {"spec"}),
    ),
    "trainables": (
        *(
            {"tune"},
            {"workbench"},
            {"trial", "foreign"},
            {"trial_result", "aftermath", "defender_data"},
            {"members"},
            {"job"},
            {"victims"},
            {"choice"},
        ),
        *({"evaluation", "scenarios"}, {"attacks", "defenses"}),
        *(
            {"training"},
            {"data", "models"},
            {"storage", "plugins"},
            {"machine", "registry", "seeding", "descriptions", "columns"},
        ),
        {"settings"},
    ),
}
# Package -> what no file of it may import, not even inside a function.
HEAVY = {"ray", "pydantic", "click", "rich", "pandas", "plotly"}
FORBIDDEN = {
    "trainables": {"superft", "study", "search_spaces", "tests", "optuna", *HEAVY},
    "search_spaces": {"superft", "study", "tests", *HEAVY},
    "study": {"superft", "tests"},
    "superft": {"tests"},
}
MAY_IMPORT = {("trainables/tune.py", "ray")}
# Words that are methods of ours and ordinary words as well.
ORDINARY = {"none", "clean"}
# A figure may mark the methods that people compare with; everything else takes names from the rows and the spec.
MAY_NAME_METHODS = {"study/report/figures/front_marks.py"}


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


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all four packages."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for room in ROOMS
        for path in files(room)
    }


def arrows(name: str, tree: ast.AST, known: Container[str]) -> set[str]:
    """The modules among ``known`` that the module ``name`` imports, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if module in known else str(node.module) for module in inside.values()}
    return {module for module in found if module in known and module != name}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop, in their order; none if there is no loop."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := follow(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := follow(name, []))), [])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: arrows(name, ast.parse(path.read_text()), known) for name, path in known.items()}


def climbing(graph: Mapping[str, set[str]]) -> list[str]:
    """Arrows between rooms of one package that do not lead down."""
    wrong = []
    for package, floors in FLOORS.items():
        level = {room: number for number, rooms in enumerate(floors) for room in rooms}
        for name, others in graph.items():
            for other in others:
                parts, target = name.split("."), other.split(".")
                if parts[0] == target[0] == package and len(parts) > 1 < len(target) and parts[1] != target[1]:
                    assert {parts[1], target[1]} <= set(level), f"no floor for {parts[1]} or {target[1]}"
                    if level[parts[1]] >= level[target[1]]:
                        wrong.append(f"{name} -> {other}")
    return sorted(wrong)


def test_arrows_between_rooms_lead_down(graph: dict[str, set[str]]) -> None:
    assert climbing(graph) == []


def test_every_room_has_a_floor() -> None:
    for package, floors in FLOORS.items():
        rooms = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
        assert set().union(*floors) == rooms - {"__init__", "__pycache__", "recipes"}


def test_no_files_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


def test_a_circle_and_a_climbing_arrow_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert climbing({"study.spec.load": {"study.plan.jobs"}, "study.plan.jobs": {"study.spec.load"}}) == [
        "study.spec.load -> study.plan.jobs"
    ]
    known = {"study.plan.jobs", "study.plan"}
    assert arrows("x", ast.parse("def f():\n    from study.plan import jobs"), known) == {"study.plan.jobs"}
    assert arrows("x", ast.parse("from study.plan.jobs import Plan"), known) == {"study.plan.jobs"}


def test_no_package_hands_on_names_that_it_imports() -> None:
    """An `__init__` that re-exports hides arrows and makes every import pay for all of its room."""
    wrong = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in files(room)
        if path.name == "__init__.py" and "__all__" in path.read_text()
    ]
    assert wrong == []


def test_nothing_edits_the_path_or_runs_at_import() -> None:
    for room in ROOMS:
        for path in files(room):
            text = path.read_text()
            assert not re.search(r"sys\.path(\.\w|\[[^]]*\] *=|\s*\+?= )", text), path
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
