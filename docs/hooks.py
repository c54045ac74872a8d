"""MkDocs calls this while it builds the site: pages get the parts that come from the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from docs.generate import fill


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its generated parts."""
    return fill(markdown)
