"""References: every method has its place, and a study gets those of what it ran, no others."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from study import citations
from tests.study.commands import assert_refused, invoke
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES
from trainables.registry import Registry

ROOT = Path(__file__).parents[2]
LEDGERS = ROOT / "tests" / "ledgers"
STUDY = LEDGERS / "attacks"
# Methods that no paper describes.
NOBODYS = {"attack clean", "defense none", "defense ft", "defense scratch"}
REGISTRIES = {"attack": ATTACKS, "defense": DEFENSES}


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{([^,]+),", text, re.M)


def methods() -> dict[str, type]:
    """``KIND NAME`` -> class, of all that ships."""
    return {f"{kind} {name}": registry.get(name) for kind, registry in REGISTRIES.items() for name in registry.names()}


def test_every_method_has_a_reference_or_is_nobodys() -> None:
    cited = {need for _, needs in citations.entries().values() for need in needs}
    assert set(methods()) - NOBODYS == cited - {"project", "study", "trials", "searches"}


def test_the_number_in_a_methods_docstring_is_that_of_its_reference() -> None:
    for need, cls in methods().items():
        said = re.findall(r"arXiv:(\d{4}\.\d{5})", (inspect.getdoc(sys.modules[cls.__module__]) or "").splitlines()[0])
        texts = [text for text, needs in citations.entries().values() if need in needs]
        assert set(said) <= {number for text in texts for number in re.findall(r"eprint = \{(.+?)\}", text)}, need


def test_entries_are_whole() -> None:
    for key, (text, _) in citations.entries().items():
        assert re.match(rf"@(misc|inproceedings)\{{{key},\n", text)
        assert text.count("{") == text.count("}")
        assert "keywords" not in text
        for field in ("title", "author", "year"):
            assert f"\n  {field} = {{" in text, key


def test_a_study_gets_the_references_of_what_it_ran_each_once() -> None:
    ran = ["barni2019sig", "nguyen2020inputaware", "nguyen2021wanet", "sha2022finetuning", "zeng2021frequency"]
    assert sorted(keys(invoke("cite", STUDY).stdout)) == sorted([*ran, "superft", "liaw2018tune", "paszke2019pytorch"])
    assert "akiba2019optuna" in keys(invoke("cite", LEDGERS / "compare").stdout)


def test_without_a_study_the_project_and_its_paper() -> None:
    assert keys(invoke("cite").stdout) == ["superft", "sha2022finetuning"]


@pytest.mark.parametrize("reference", ["", "@misc{theirs,\n  title = {Theirs}\n}"])
def test_a_method_of_somebody_else_is_cited_as_it_says_or_named(
    reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {key: found for key, found in citations.entries().items() if key != "barni2019sig"}
    theirs = type("Theirs", (ATTACKS.get("sig"),), {"__module__": "their.package", "reference": reference})
    ours = Registry.get
    monkeypatch.setattr(citations, "entries", lambda: known)
    monkeypatch.setattr(Registry, "get", lambda self, name: theirs if name == "sig" else ours(self, name))
    text = citations.references(STUDY)
    assert ("theirs" in keys(text)) == bool(reference)
    assert ("% attack sig: no reference is known here" in text) == (not reference)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("cite", tmp_path), "is no study folder")


def test_the_citation_file_names_the_paper_and_the_version() -> None:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found)
    (paper,) = found["references"]
    entry, _ = citations.entries()["sha2022finetuning"]
    assert paper["title"] in entry
    assert " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]) in entry
    assert f'version = "{found["version"]}"' in (ROOT / "pyproject.toml").read_text()
