"""The built site needs no network. Runs where mkdocs is installed (`make docs`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import MANUAL, ROOT


def test_the_site_loads_nothing_from_outside(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    pages = sorted(tmp_path.glob("*.html"))
    assert {f"docs/{page.stem}.md" for page in pages} >= set(MANUAL)
    for page in pages:
        text = page.read_text()
        loaded = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)", text
        )
        assert loaded == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name
