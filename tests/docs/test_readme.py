"""The README is one page, and what it says of methods is what the code does."""

from __future__ import annotations

import json
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
    """One seed is no result: the table stands with its seeds, steps, images, and rivals."""
    section = README.split("\n## One result\n", 1)[1].split("\n## ", 1)[0]
    for words in (
        "three attackers times two defenders",
        "130 clean",
        "1,000",
        "450 triggered",
        "docs/findings.md",
    ):
        assert words in section, words
    for repair in ("`super_ft`", "`ft_peak`", "`ft_peak_constant`", "`scratch`", "no repair"):
        assert f"| {repair}" in section, repair


def results(page: str) -> list[str]:
    """The rows of a table of repairs on digits, three attackers times two defenders."""
    found = re.findall(r"^\| (?:no repair|`ft|`super_ft`|`scratch`).* \|$", text_of(page), re.M)
    return [row for row in found if len(row.split("|")) == 9]


def test_the_table_of_the_readme_is_that_of_its_ledger() -> None:
    ledger = (ROOT / "benchmarks" / "results" / "schedule-digits" / "trials.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in ledger]
    for label in ("ft", "super_ft", "ft_peak", "ft_peak_constant", "scratch"):
        (line,) = (row for row in results("README.md") if row.startswith(f"| `{label}`"))
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        for attack, told in (("badnets", cells[:3]), ("blended", cells[3:])):
            own = [row for row in rows if (row["defense_label"], row["attack"]) == (label, attack)]
            asrs, accuracies = (sorted(row[key] for row in own) for key in ("asr", "clean_accuracy"))
            assert told[0] == f"{sum(asr <= 0.1 for asr in asrs)} of {len(own)}"
            assert told[1] == f"{asrs[0]:.3f} to {asrs[-1]:.3f}"
            mean = sum(accuracies) / len(accuracies)
            assert told[2] == f"{mean:.3f} ({accuracies[0]:.3f} to {accuracies[-1]:.3f})"


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
