"""Rows, times and rates in the words that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from study.record.columns import CELLS_SAVED, DROPPED_BY


def describe(row: Mapping[str, Any]) -> str:
    """A row in a few words."""
    where = f"{row['trial']}" + (f" ({row['attack']})" if not str(row["trial"]).startswith(row["attack"]) else "")
    if row["status"] == "failed":
        return f"{where} seed {row['seed']} FAILED: {row['error']}"
    status = "" if row["status"] == "ok" else f" {row['status'].upper()}"
    text = (
        f"{where} seed {row['seed']}{status}: ASR {row['asr_search']:.3f}, "
        f"clean accuracy {row['clean_accuracy_search']:.3f}, {row['wall_seconds']:.1f} s"
    )
    if row.get(DROPPED_BY):
        text += f"; dropped, {row[DROPPED_BY]} is better: {row[CELLS_SAVED]} fewer to run"
    return text


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def in_bytes(count: float) -> str:
    """A number of bytes as people say it: 912 bytes, 44.8 MB, 1.2 GB; powers of 1,000, as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.1f} {unit}"


def finishing_time(seconds: float, now: datetime | None = None) -> str:
    """Day and time, on this machine's clock, so many seconds from now: Tue 24 Nov 14:35."""
    return f"{(now or datetime.now()) + timedelta(seconds=seconds):%a %d %b %H:%M}"


def percent(value: Any, digits: int = 1) -> str:
    """0.9731 as ``97.3 %``; a dash where there is no value."""
    import pandas as pd  # here: see `record.columns.to_frame`

    return "–" if pd.isna(value) else f"{100 * float(value):.{digits}f} %"


def in_columns(rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """Lines with their cells below each other; the first ``texts`` columns to the left, the others, numbers, right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def ago(seconds: float) -> str:
    """How long ago something was, for people."""
    return "just now" if seconds < 5 else f"{duration(seconds)} ago"


def finished_at(row: Mapping[str, Any]) -> float | None:
    """When a trial ended, in seconds since the epoch; a failed one does not say."""
    if not row.get("started"):
        return None
    return datetime.fromisoformat(row["started"]).timestamp() + (row.get("wall_seconds") or 0.0)
