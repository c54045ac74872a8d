"""MkDocs calls this while it builds the site (`python -m mkdocs`): pages get the parts that come from the code."""

from __future__ import annotations

from typing import Any

from docs.generate import fill


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its generated parts."""
    return fill(markdown)
