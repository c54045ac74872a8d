"""References: every method has its place, and a study gets those of what it ran, no others."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

from study import citations
from tests.study.commands import assert_refused, invoke
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES

ROOT = Path(__file__).parents[2]


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),", text, re.M)


@pytest.mark.parametrize(("registry", "table"), [(ATTACKS, citations.ATTACKS), (DEFENSES, citations.DEFENSES)])
def test_every_method_has_its_place(registry: object, table: dict[str, tuple[str, ...]]) -> None:
    own = [name for name in registry.names() if registry.get(name).__module__.startswith("trainables.")]  # type: ignore[attr-defined]
    assert sorted(table) == own
    assert {key for found in table.values() for key in found} <= set(citations.entries())


@pytest.mark.parametrize(("registry", "table"), [(ATTACKS, citations.ATTACKS), (DEFENSES, citations.DEFENSES)])
def test_the_number_in_a_methods_docstring_is_that_of_its_reference(
    registry: object, table: dict[str, tuple[str, ...]]
) -> None:
    entries = citations.entries()
    for name, found in table.items():
        module = sys.modules[registry.get(name).__module__]  # type: ignore[attr-defined]
        said = re.findall(r"arXiv:(\d{4}\.\d{5})", (inspect.getdoc(module) or "").splitlines()[0])
        cited = [number for key in found for number in re.findall(r"eprint = \{(.+?)\}", entries[key])]
        assert set(said) <= set(cited), name


def test_entries_are_whole() -> None:
    for key, text in citations.entries().items():
        assert re.match(rf"@(misc|inproceedings)\{{{key},\n", text)
        assert text.count("{") == text.count("}")
        for field in ("title", "author", "year"):
            assert f"\n  {field} = {{" in text, key


def test_a_study_gets_the_references_of_what_it_ran_each_once() -> None:
    found = keys(invoke("cite", ROOT / "benchmarks" / "results" / "attacks").stdout)
    assert sorted(found) == sorted(
        ["superft", "barni2019sig", "zeng2021frequency", "nguyen2020inputaware", "nguyen2021wanet"]
        + ["sha2022finetuning", "liaw2018tune", "paszke2019pytorch"]
    )
    assert "akiba2019optuna" in keys(invoke("cite", ROOT / "benchmarks" / "results" / "compare").stdout)


def test_without_a_study_the_project_and_its_paper() -> None:
    assert keys(invoke("cite").stdout) == ["superft", "sha2022finetuning"]


def test_a_method_of_somebody_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(citations.ATTACKS, "sig")
    text = citations.references(ROOT / "benchmarks" / "results" / "attacks")
    assert "% attack sig: no reference is known here" in text
    assert "barni2019sig" not in keys(text)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("cite", tmp_path), "is no study folder")


def test_the_citation_file_names_the_paper_and_the_version() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found)
    (paper,) = found["references"]
    assert paper["title"] in citations.entries()["sha2022finetuning"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) in citations.entries()["sha2022finetuning"]
    assert f'version = "{found["version"]}"' in (ROOT / "pyproject.toml").read_text()
