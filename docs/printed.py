"""Parts of pages that a command of ours printed, kept as text so that they are read, and compared, without running it.

`python -m docs.printed` prints them anew, on every page that has a part between these two lines:

    <!-- prints: superft claims --markdown benchmarks/results/*/ -->
    <!-- end -->

A pattern with ``*`` stands for all paths that it matches, as in a shell; ``prints as text`` puts the output into a
block of code. Commands run in a folder of their own, which has the repository's folders and no data or victims, so
that they print the same on every machine. tests/docs/test_printed.py holds that they are what the commands print today.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from click.testing import CliRunner

from study.cli import main as superft

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- prints( as text)?: superft ([^\n]*?) -->\n).*?(<!-- end -->)", re.S)
FOLDERS = ("benchmarks", "docs")  # that commands on pages may name


def printed(command: str) -> str:
    """What ``superft COMMAND`` prints where the repository's folders are (RuntimeError if it fails)."""
    words = [path for word in shlex.split(command) for path in _expanded(word)]
    with _a_place():
        ran = CliRunner().invoke(superft, words, catch_exceptions=False)
    if ran.exit_code:
        raise RuntimeError(f"superft {command} ended with {ran.exit_code}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def renewed(page: str) -> str:
    """A page with all that commands printed on it printed anew."""

    def anew(found: re.Match[str]) -> str:
        said = f"```text\n{printed(found[3])}\n```" if found[2] else printed(found[3])
        return f"{found[1]}\n{said}\n\n{found[4]}"

    return PART.sub(anew, page)


@contextlib.contextmanager
def _a_place() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        for name in FOLDERS:
            os.symlink(ROOT / name, name)
        nowhere = {"SUPERFT_DATA": f"{empty}/data", "SUPERFT_STORE": f"{empty}/store"}
        with mock.patch.dict(os.environ, nowhere):
            yield


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
