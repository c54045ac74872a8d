"""Parts of pages that a command of ours printed, kept as text so that they are read, and compared, without running it.

`python -m docs.printed` prints them anew, on every page that has a part between these two lines:

    <!-- prints: superft claims --markdown benchmarks/results/*/ -->
    <!-- end -->

A pattern with ``*`` stands for all paths that it matches, as in a shell. tests/docs/test_printed.py holds that they are
what the commands print today.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from study.cli import main as superft

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- prints: superft ([^\n]*?) -->\n).*?(<!-- end -->)", re.S)


def printed(command: str) -> str:
    """What ``superft COMMAND`` prints, in the root of the repository (RuntimeError if it fails)."""
    words = [path for word in shlex.split(command) for path in _expanded(word)]
    with contextlib.chdir(ROOT):
        ran = CliRunner().invoke(superft, words, catch_exceptions=False)
    if ran.exit_code:
        raise RuntimeError(f"superft {command} ended with {ran.exit_code}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def renewed(page: str) -> str:
    """A page with all that commands printed on it printed anew."""
    return PART.sub(lambda found: f"{found[1]}\n{printed(found[2])}\n\n{found[3]}", page)


def _expanded(word: str) -> list[str]:
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(word) if path.is_dir() == word.endswith("/"))


def main() -> None:
    """Bring all pages up to date, and say which were not."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (now := renewed(before)) != before:
            page.write_text(now, encoding="utf-8")
            print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
