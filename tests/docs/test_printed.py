"""What a page says that a command printed is what it prints today."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from docs.printed import PART, printed, renewed
from tests.docs.pages import MANUAL, ROOT

PAGES = [page for page in MANUAL if PART.search((ROOT / page).read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_the_command_prints_today(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert renewed(text) == text, f"{page} is behind the code or the ledgers: python -m docs.printed"


def test_the_papers_claims_are_printed_from_all_committed_ledgers() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert [found[3] for found in PART.finditer(text)] == ["claims --markdown benchmarks/results/*/"]


def test_a_page_that_is_behind_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.printed.printed", lambda command: f"what {command} prints")
    page = "before\n<!-- prints: superft list models -->\n\nold\n\n<!-- end -->\nafter"
    assert renewed(page) == page.replace("old", "what list models prints")


def test_a_pattern_stands_for_the_paths_that_it_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.argument("paths", nargs=-1)
    def show(paths: tuple[str, ...]) -> None:
        click.echo(" ".join(paths))

    monkeypatch.setattr("docs.printed.superft", show)
    folders = [path for path in (ROOT / "benchmarks" / "results").iterdir() if path.is_dir()]
    assert printed("'benchmarks/results/*/'").split() == sorted(str(path.relative_to(ROOT)) for path in folders)


def test_a_command_that_fails_is_no_part_of_a_page() -> None:
    with pytest.raises(RuntimeError, match=r"superft table nowhere ended with 2: .*nowhere"):
        printed("table nowhere")


def test_text_stands_in_a_block_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docs.printed.printed", lambda command: "a  b")
    page = "<!-- prints as text: superft list models -->\n\nold\n\n<!-- end -->"
    assert renewed(page) == page.replace("old", "```text\na  b\n```")


def test_commands_of_pages_leave_nothing_in_the_repository_and_see_no_data_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @click.command()
    def look() -> None:
        Path("whole").mkdir()
        click.echo(f"{Path('docs/printed.py').exists()} {Path(os.environ['SUPERFT_DATA']).exists()}")

    monkeypatch.setattr("docs.printed.superft", look)
    assert printed("") == "True False"
    assert not (ROOT / "whole").exists()
