"""Which searches of a study ended before they had all their settings, and why: the ledger alone does not tell."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from study.record.files import write_atomically

log = logging.getLogger("superft.ended")

ENDED_FILE = "ended.json"
# Its space holds no other setting; no setting fits into what is left of its budget.
Why = Literal["space", "budget"]


@dataclass(frozen=True)
class Ended:
    """A search that asks for no more.

    Args:
        settings: it asked for.
        why: it ended.
    """

    settings: int
    why: Why


def read_ended(directory: Path) -> dict[str, Ended]:
    """The searches of the study in ``directory`` that have ended so, by label; none where there is no such file."""
    path = directory / ENDED_FILE
    try:
        return {label: Ended(**fields) for label, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("damaged file %s (%s): found out again", path, error)
        return {}


def write_ended(directory: Path, ended: Mapping[str, Ended]) -> None:
    """Keep them for whoever continues the study, or looks at it."""
    content = {label: dataclasses.asdict(one) for label, one in ended.items()}
    write_atomically(directory / ENDED_FILE, (json.dumps(content, indent=1) + "\n").encode())
