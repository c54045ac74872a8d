"""What the driver of a study is doing, ``now.json``, for those who look on. The ledger alone is the truth.

It is written every few seconds while the study runs, and once at the end. Nothing is ever continued from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from study.record.files import write_atomically

NOW_FILE = "now.json"
# A driver that has been silent for so many seconds was killed, or its machine is gone: it writes six times as often,
# and clocks of machines differ by some seconds.
SILENT_SECONDS = 120.0
PHASES = ("starting", "victims", "detectors", "measuring", "trials", "report", "ended")


@dataclass(frozen=True)
class NodeNow:
    """A living node: CPUs and GPUs for trials, and how many trials are thought to be on it (Ray alone decides)."""

    name: str
    cpus: float
    gpus: int
    accelerator: str
    running: int


@dataclass(frozen=True)
class Now:
    """One look at a running study.

    Args:
        host, pid: of the driver.
        began, seen: of this run, and when this was written; seconds since the epoch, by the driver's clock.
        phase: one of PHASES.
        outcome: with ``ended``: ``finished``, ``interrupted`` or ``failed``; else empty.
        nodes: that are alive.
        slots: the most trials that fit on them at once; None: not known yet.
        running: trials that run.
        gpus_busy: GPUs that these were given, shares summed.
        victims: that the study needs; None: not known yet.
        victims_ready, victims_failed: of them.
        left: trials to come.
    """

    host: str
    pid: int
    began: float
    seen: float
    phase: str
    outcome: str = ""
    nodes: tuple[NodeNow, ...] = ()
    slots: int | None = None
    running: int = 0
    gpus_busy: float = 0.0
    victims: int | None = None
    victims_ready: int = 0
    victims_failed: int = 0
    left: int = 0

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)


def write_now(directory: Path, now: Now) -> None:
    """Replace what was written before (OSError)."""
    write_atomically(directory / NOW_FILE, (json.dumps(asdict(now), indent=1) + "\n").encode())


def read_now(directory: Path) -> Now | None:
    """What the study's last driver wrote last; None where there is nothing that this version can read."""
    try:
        found: dict[str, Any] = json.loads((directory / NOW_FILE).read_text(encoding="utf-8"))
        now = Now(**{**found, "nodes": tuple(NodeNow(**node) for node in found["nodes"])})
        return replace(now, began=float(now.began), seen=float(now.seen))
    except (OSError, ValueError, TypeError, KeyError):  # a help for lookers-on, which no study depends on
        return None
