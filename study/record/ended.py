"""Which searches of a study ended because nothing more fits into their budget: the ledger alone does not tell."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from study.record.files import write_atomically

log = logging.getLogger("superft.ended")

ENDED_FILE = "ended.json"


def read_ended(directory: Path) -> dict[str, int]:
    """The searches of the study in ``directory`` that ended so: label -> settings they have; none without the file."""
    path = directory / ENDED_FILE
    try:
        return {str(label): int(count) for label, count in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("damaged file %s (%s): found out again", path, error)
        return {}


def write_ended(directory: Path, ended: Mapping[str, int]) -> None:
    """Keep them for whoever continues the study, or looks at it."""
    write_atomically(directory / ENDED_FILE, (json.dumps(dict(ended), indent=1) + "\n").encode())
