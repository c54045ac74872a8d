"""The README is one page, and what it says of methods is what the code does."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.docs.pages import ROOT, blocks, text_of
from trainables.attacks.base import ATTACKS
from trainables.defenses.base import DEFENSES, CleanData, NoData, PoisonedData

README = text_of("README.md")
MOST_WORDS = 1000


def test_it_has_at_most_a_thousand_words() -> None:
    assert len(README.split()) <= MOST_WORDS


def matrix() -> tuple[list[list[str]], dict[tuple[str, ...], list[str]]]:
    """Names in the head (a group per column), and names of each row -> its cells."""
    section = README.split("\n## Attacks and defenses\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [re.findall(r"`([a-z_0-9]+)`", cell) for cell in head[1:]]
    return names, {tuple(re.findall(r"`([a-z_0-9]+)`", row[0])): row[1:] for row in rows}


def test_the_matrix_names_every_attack_and_every_defense_once() -> None:
    columns, rows = matrix()
    assert sorted(name for group in columns for name in group) == DEFENSES.names()
    assert sorted(name for group in rows for name in group) == ATTACKS.names()


@pytest.mark.parametrize("column", range(3))
def test_a_column_of_the_matrix_owns_what_it_says(column: int) -> None:
    wanted = (NoData, CleanData, PoisonedData)[column]
    assert {DEFENSES.get(name).owns for name in matrix()[0][column]} == {wanted}


def test_the_matrix_refuses_what_the_code_refuses() -> None:
    for names, cells in matrix()[1].items():
        for name in names:
            attack = ATTACKS.create(name)
            released = attack.releases_training_set or not attack.implants_backdoor
            assert cells == ["yes", "yes", "yes" if released else "refused"], name


def test_its_result_is_told_with_its_conditions() -> None:
    """One seed is no result: the table never stands without what other seeds gave."""
    section = README.split("\n## One result\n", 1)[1].split("\n## ", 1)[0]
    for words in ("one seed", "seeds 1 and 2", "117 clean images", "226 triggered", "AMD EPYC", "docs/findings.md"):
        assert words.lower() in section.lower(), words


def test_the_tables_of_the_quickstart_agree() -> None:
    def rows(page: str) -> list[str]:
        found = re.findall(r"^\| (?:no repair|`ft`|`super_ft`|`scratch`),? .*$", text_of(page), re.M)
        return [row for row in found if len(row.split("|")) == 7][:6]

    assert len(rows("README.md")) == 6
    assert rows("README.md") == rows("docs/findings.md")


def test_contributing_is_one_screen() -> None:
    assert len(text_of("CONTRIBUTING.md").splitlines()) <= 40


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    wanted = re.findall(
        r"^make ([a-z-]+)", "\n".join([*blocks("README.md", "sh"), *blocks("CONTRIBUTING.md", "sh")]), re.M
    )
    assert {"run", "test", "docs"} <= set(wanted)
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_headings_do_not_skip_a_level() -> None:
    for page in ("README.md", "docs/methods.md", "docs/results.md"):
        prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
        levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)]
        assert levels[0] == 1
        assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
