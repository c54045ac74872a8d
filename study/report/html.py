"""Cells and tables of report.html."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from study.record.words import percent
from study.results.settings import ends_of

Table = list[dict[str, str]]
LONGEST_NAME = 160
ORDINARY = r"[A-Za-z0-9_\- ,:/.()=+\[\]]*"  # what a name of few such letters leaves out, nobody mistakes for another
_WORDY = ("model", "chosen as", "cause", "runs", "flagged classes")  # columns that need room for words
_LONG = ("setting",)  # and those that need more


def table_html(rows: Table, last: str = "") -> str:
    """A table whose columns are the keys of its rows, in order, ``last`` at the end; empty columns are left out."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.sort(key=lambda name: name == last)
    columns = [name for name in columns if any(row.get(name) for row in rows)]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        cells = []
        for name in columns:
            wide = ' class="words"' if name in _WORDY else ' class="long"' if name in _LONG else ""
            text = re.sub(r"(\[[\d., ]+\])", r'<span class="ci">\1</span>', escape(row.get(name, "")))
            cells.append(f"<td{wide}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def folded(title: str, content: str, name: str) -> str:
    """A part of the page that is closed until somebody opens it, or follows a link to ``#name``."""
    return f'<details id="{escape(name)}"><summary>{escape(title)}</summary>{content}</details>'


def embedded(png: bytes, description: str) -> str:
    """A picture within the page, so that it stays one file."""
    content = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(description)}" src="data:image/png;base64,{content}"></p>'


def slug(text: str) -> str:
    """A text as a name for links and files, at most 160 letters long; what it leaves out is told by a digest."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text)
    if len(name) <= LONGEST_NAME and re.fullmatch(ORDINARY, text):
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def rate(one: Mapping[str, Any] | pd.Series[Any], metric: str) -> str:
    """A rate of a setting on the report half as percent, with its 95 % interval where the number of images is known.

    Args:
        one: row of ``settings.aggregate``.
        metric: ``asr``, ``clean_accuracy`` or ``robust_accuracy``; before repair with ``_before``.
    """
    ends = ends_of(one, metric)
    return percent(one[f"{metric}_report"]) + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def number(value: Any, digits: int) -> str:
    """Fixed digits; a dash where there is no value."""
    return "–" if pd.isna(value) else f"{float(value):.{digits}f}"


def plain(value: Any) -> str:
    """A setting's value; floats to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plural(word: str, n: int) -> str:
    """``trial`` or ``trials``."""
    return word if n == 1 else word + "s"


def escape(text: Any) -> str:
    """Text that cannot become markup."""
    return html.escape(str(text))
