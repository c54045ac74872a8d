"""The attacker's class in words: its number, and its name where the ledger or the spec gives one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

NUMBERS, NAMES = ("target_label", "target_class"), ("target_class_name", "target_class", "target_label")


def target_text(rows: pd.DataFrame, spec: Mapping[str, Any] | None = None) -> str:
    """``0 (airplane)``, ``0`` or ``airplane``, for the rows of one attack; empty where nothing tells.

    Args:
        rows: ledger rows; today's may hold none of the columns.
        spec: the study as written, whose ``attack.NAME.target_label`` fills in.
    """
    found = {name: rows[name].dropna().unique().tolist() for name in {*NUMBERS, *NAMES} if name in rows}
    attacks = rows["attack"].dropna().unique().tolist()
    own = (spec or {}).get("attack")
    method = own.get(attacks[0]) if isinstance(own, Mapping) and len(attacks) == 1 else None
    if not any(found.values()) and isinstance(method, Mapping) and "target_label" in method:
        found = {"target_label": [method["target_label"]]}
    number = next((one for name in NUMBERS if (one := _only(found.get(name), wanted_number=True))), "")
    called = next((one for name in NAMES if (one := _only(found.get(name), wanted_number=False))), "")
    return f"{number} ({called})" if number and called else number or called


def _only(values: list[Any] | None, *, wanted_number: bool) -> str:
    """The one value, if there is exactly one and it is a class number (or, as wanted, a name)."""
    texts = {_plain(value) for value in values or []}
    if len(texts) != 1:
        return ""
    (text,) = texts
    return text if text.isdigit() == wanted_number else ""


def _plain(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
