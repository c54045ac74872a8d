"""What one look at the machine found: a verdict, what is so, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warn", "fail"]
GIGABYTE = 10**9


@dataclass(frozen=True)
class Options:
    """What the command was asked.

    Args:
        store: a folder or a URI, as people write it; None: the default store.
        seconds: how long the throughput is measured, > 0.
    """

    store: str | None = None
    seconds: float = 10.0


@dataclass(frozen=True)
class Finding:
    """The result of one look.

    Args:
        verdict: ``ok``; ``warn``: studies run, but slower, or a trap lies near; ``fail``: a problem.
        says: what was found, in one line.
        todo: what to do about it, in one line; empty where there is nothing to do.
        facts: the same as values of JSON.
    """

    verdict: Verdict
    says: str
    todo: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def line(self, look: str) -> str:
        """As people read it: ``FAIL store: /x cannot be written; name another, or set SUPERFT_STORE``."""
        shown = "FAIL" if self.verdict == "fail" else self.verdict
        return f"{shown:<4} {look}: {self.says}{f'; {self.todo}' if self.todo else ''}"


def gigabytes(size: float) -> str:
    """A number of bytes as people read it, in GB of 10^9 bytes."""
    return f"{size / GIGABYTE:.1f} GB" if size < 100 * GIGABYTE else f"{size / GIGABYTE:.0f} GB"
