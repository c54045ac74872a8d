"""Weights and the JSON card beside them: where they may go, and how they get there whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from study.spec.yaml_io import SpecError
from trainables.foreign.weights import save_state

ENDINGS = (".safetensors", ".pt", ".pth")
CARD_SCHEMA = 1


def check_place(out: Path, overwrite: bool, endings: Sequence[str] = ENDINGS, beside: Sequence[Path] = ()) -> Path:
    """Where the card of ``out`` goes (its name with .json); both can be written.

    Args:
        endings: that ``out`` may have.
        beside: further files that are to be written in its folder.

    Raises:
        SpecError: another ending, a file that is there already, or no folder that can be written to; before any work.
    """
    if out.suffix not in endings:
        raise SpecError(f"--out {out}: must end in {'one of ' if len(endings) > 1 else ''}{', '.join(endings)}")
    card = out.with_suffix(".json")
    for path in (out, card, *beside):
        if path.exists() and not overwrite:
            raise SpecError(f"--out {out}: {path} is there already; choose another name, or give --overwrite")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise SpecError(f"--out {out}: {out.parent} is no folder that can be written to")
    return card


def write_with_card(state: Mapping[str, Tensor], out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write weights and, beside them, ``facts`` with the name and hash of their file; the card as it was written.

    Raises:
        SpecError: they cannot be written (disk full).
    """
    try:
        return write_card(out, save_state(dict(state), out), facts)
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def write_card(out: Path, digest: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``facts`` beside ``out``, with its name and SHA-256; the card as it was written (OSError)."""
    path = out.with_suffix(".json")
    card = {"card": CARD_SCHEMA, "weights": {"file": out.name, "sha256": digest}, **facts}
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)
    return card
