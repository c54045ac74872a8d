"""The README tells the truth: its links, commands, keys, study and example work."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import torch

from study.cli import main
from study.plan.jobs import make_plan
from study.spec.load import make_spec, recipe_names
from study.spec.schema import StudySpec
from study.spec.yaml_io import parse_yaml
from trainables.attacks.base import ATTACKS, stamp
from trainables.defenses.base import DEFENSES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def superft_commands() -> list[str]:
    in_blocks = [line.partition("#")[0] for block in blocks("sh") for line in block.splitlines()]
    in_text = re.findall(r"`(superft [^`]+)`", README)
    return sorted({line.strip() for line in [*in_blocks, *in_text] if line.strip().startswith("superft ")})


def table_under(heading: str) -> list[str]:
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| `([a-z0-9_]+)` \|", section, flags=re.M)


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_no_link_to_a_file_is_dead(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / target).exists(), f"{page} links to {target}"
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in headings, f"{page} links to #{anchor}"


@pytest.mark.parametrize("line", superft_commands())
def test_every_superft_command_in_the_readme_exists_with_its_options(line: str) -> None:
    words = shlex.split(re.sub(r"\[[^]]*\]|\.\.\.", "", line))[1:]
    command = main.get_command(click.Context(main), words[0])
    if words[0].startswith("-") or not words[0].isalpha():
        return
    assert command is not None, f"no command superft {words[0]}"
    known = {name for parameter in command.params for name in parameter.opts}
    for word in words[1:]:
        if word.startswith("-"):
            assert word in known, f"superft {words[0]} has no option {word}"


def test_the_study_in_the_readme_is_a_whole_study() -> None:
    for text in blocks("yaml"):
        plan = make_plan(make_spec(parse_yaml(text, "README")))
        assert plan.searches
        assert plan.baselines


def test_every_key_in_the_readme_exists() -> None:
    table = README.split("| key | meaning | default |", 1)[1].split("\n\n", 1)[0]
    for row in re.findall(r"^\| (`.+?) \|", table, flags=re.M):
        group = ""
        for key in re.findall(r"`([a-z_.]+)`", row):
            group = key.split(".")[0] if not key.startswith(".") else group
            full = group + key if key.startswith(".") else key
            part = StudySpec.model_fields[full.split(".")[0]]
            if "." in full:
                fields = part.annotation.model_fields  # type: ignore[union-attr]
                assert full.split(".")[1] in fields, f"no key {full}"


def test_the_tables_name_every_attack_and_every_defense() -> None:
    assert table_under("Attacks") == [*dict.fromkeys(table_under("Attacks"))]
    assert sorted(table_under("Attacks")) == ATTACKS.names()
    assert sorted(table_under("Defenses")) == DEFENSES.names()


def test_the_recipes_in_the_readme_ship() -> None:
    for name in re.findall(r"recipe `([a-z_]+)`", README):
        assert name in recipe_names()


def test_the_attack_in_the_readme_is_an_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python")
    ATTACKS.names()
    monkeypatch.setattr(ATTACKS, "_things", dict(ATTACKS._things))
    monkeypatch.setattr(ATTACKS, "_modules", dict(ATTACKS._modules))
    (tmp_path / "readme_attack.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "readme_attack", raising=False)
    __import__("readme_attack")
    attack = ATTACKS.create("corner_dot", {"level": 1.0})
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    triggered = stamp(attack.make_trigger(16, seed=0), images)  # type: ignore[attr-defined]
    assert (triggered != images).nonzero().tolist() == [[n, c, 15, 15] for n in range(2) for c in range(3)]
    assert (triggered[..., -1, -1] == 255).all()
