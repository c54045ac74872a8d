"""README and manual tell the truth: links lead somewhere, commands exist, examples work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from study.cli import main
from study.plan.jobs import make_plan
from study.spec.load import make_spec
from study.spec.yaml_io import merge_assignments, parse_yaml
from tests.docs.pages import MANUAL, PAGES, ROOT, anchors, blocks, links, prose_of, superft_commands
from trainables.attacks.base import ATTACKS
from trainables.attacks.triggers import stamp

COMMANDS = sorted({(page, *words) for page in PAGES for words in superft_commands(page)})


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).exists(), f"{page} links to {target}"
        if anchor and target.endswith(".md"):
            path = str((ROOT / target).resolve().relative_to(ROOT))
            assert anchor in anchors(path), f"{page} links to {target}#{anchor}"


def test_a_dead_link_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.docs.pages.text_of", lambda page: "[a](nowhere.md) [b](docs/faq.md#nothing) [c](https://x.y)"
    )
    assert list(links("README.md")) == [("nowhere.md", ""), ("docs/faq.md", "nothing")]


def test_pages_of_the_manual_link_to_pages_of_the_manual_alone() -> None:
    """The site holds nothing else, so `mkdocs build --strict` would refuse them."""
    for page in MANUAL:
        for target, _ in links(page):
            assert (ROOT / target).resolve().is_relative_to(ROOT / "docs"), f"{page} links to {target}"


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    listed = re.findall(r": ([a-z_]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(f"docs/{name}" for name in listed) == MANUAL


@pytest.mark.parametrize("found", COMMANDS, ids=lambda found: " ".join(found[:4]))
def test_every_superft_command_exists_with_its_options(found: tuple[str, ...]) -> None:
    page, name, *words = found
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"{page}: no command superft {name}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{page}: superft {name} has no option {word}"


@pytest.mark.parametrize("found", [item for item in COMMANDS if "--set" in item and item[1] in ("run", "plan")])
def test_what_commands_set_is_accepted(found: tuple[str, ...]) -> None:
    """Against a spec that has all the methods which the examples name."""
    words = list(found[2:])
    given = [words[at + 1] for at, word in enumerate(words) if word == "--set" and "=" in words[at + 1]]
    recipe = words[0] if (ROOT / "study" / "recipes" / f"{words[0]}.yaml").exists() else ""
    base = parse_yaml((ROOT / "study" / "recipes" / f"{recipe or 'quickstart'}.yaml").read_text(), "recipe")
    make_plan(make_spec(merge_assignments(base, given)))


# Those of docs/extending.md need its plug-ins: test_extending.py.
STUDIES = [
    (page, text)
    for page in PAGES
    if page != "docs/extending.md"
    for text in blocks(page, "yaml")
    if re.search(r"^attacks:", text, re.M)
]


@pytest.mark.parametrize(("page", "text"), STUDIES, ids=[page for page, _ in STUDIES])
def test_every_study_is_a_whole_study(page: str, text: str) -> None:
    plan = make_plan(make_spec(parse_yaml(text, page)))
    assert plan.baselines
    assert plan.searches or "defenses: []" in text


def examples() -> list[Any]:
    """Python blocks that run as they stand; those that need a study of the reader's own say so in their first line."""
    pages = [page for page in PAGES if page != "docs/extending.md"]  # its examples are files, see test_extending.py
    return [
        pytest.param(page, code, id=f"{page}-{number}", marks=[pytest.mark.slow] if "# slow" in code else [])
        for page in pages
        for number, code in enumerate(blocks(page, "python"))
        if not code.startswith("# after:")
    ]


@pytest.mark.parametrize(("page", "code"), examples())
def test_python_examples_run(
    page: str, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    if "print(" in code:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_are_python(page: str) -> None:
    for code in blocks(page, "python"):
        compile(code, page, "exec")


@pytest.mark.usefixtures("_as_before")
def test_the_example_of_an_attack_is_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(code for code in blocks("docs/extending.md", "python") if "corner_dot" in code)
    (tmp_path / "manual_attack.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "manual_attack", raising=False)
    __import__("manual_attack")
    attack = ATTACKS.create("corner_dot", {"level": 1.0})
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    triggered = stamp(attack.make_trigger(16, seed=0), images)  # type: ignore[attr-defined]
    assert (triggered != images).nonzero().tolist() == [[n, c, 15, 15] for n in range(2) for c in range(3)]
    assert (triggered[..., -1, -1] == 255).all()


def test_files_that_sentences_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:benchmarks|cluster|docs|tests|study|trainables)/[\w./-]+)`", prose_of(page)):
            if "NAME" not in name and "corner_dot" not in name:
                assert (ROOT / name).exists(), f"{page} names {name}"
