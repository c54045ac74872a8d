"""What people read, as tests see it: pages with their links, headings, commands and examples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from docs.generate import fill

ROOT = Path(__file__).parents[2]
MANUAL = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "cluster/README.md", *MANUAL]


def text_of(page: str) -> str:
    """A page as it is read: with what is made from the code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return fill(text) if page in MANUAL else text


def prose_of(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def superft_commands(page: str) -> Iterator[list[str]]:
    """Arguments of every superft command, in blocks and in sentences."""
    in_blocks = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.partition("#")[0] for line in in_blocks.splitlines()]
    in_text = re.findall(r"`([^`\n]*superft [a-z][^`]+)`", prose_of(page))
    for line in [*lines, *in_text]:
        if found := re.search(r"(?:^|\s|'exec )superft (?=[a-z])(.*)", line):
            words = re.sub(r"\[[A-Z-][^]]*\]|\.\.\.| > \S+$", "", found[1].strip())
            yield shlex.split(words.removesuffix("'") if "'exec" in line else words)


def anchors(page: str) -> set[str]:
    """Ids that the headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: str) -> Iterator[tuple[str, str]]:
    """(page or file, anchor) of every link that stays in the repository; both relative to its root."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        yield (str(Path(page).parent / path) if path else page), anchor
