"""What a trial of each kind takes of a GPU: measured before all others, kept in the study's folder, for shares."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.plan.jobs import Plan
from study.plan.slots import Node, count_slots, share_of
from study.record.files import write_atomically
from trainables.data.load import DataSource
from trainables.defenses.base import DEFENSES
from trainables.job import Cell

log = logging.getLogger("superft.measurements")

MEASURED_FILE = "measured.json"
# A trial that takes longer is cut: what it takes of the card has been seen by then, in all but the longest defenses.
LONGEST_SECONDS = 120.0
# Other settings of a kind may take more memory than the published ones, and allocators leave gaps.
MEMORY_MARGIN = 1.15
# A card is full when it is busy so much of the time; one more trial would only slow down the others.
FULL = 0.9
GIB = 2**30


@dataclass(frozen=True)
class Kind:
    """Trials that take the same of a card.

    Args:
        name: all that decides memory and load: defense, model, width, image size, batch size.
        labels: of the searches and baselines that they belong to.
        cells: that they run on.
        settings: of the trial that is measured: the published point, at the largest batch searched.
    """

    name: str
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One trial alone on a card, as `trainables.machine.device_meter.Usage` says; ``epochs``: its work in E.

    ``cut``: it was ended before its time, ``epochs`` and ``seconds`` are those until then. ``error``: it had not enough
    of the whole card.
    """

    card: str
    accelerator: str
    total_bytes: int
    peak_bytes: int
    outside_bytes: int
    busy: float
    seconds: float
    epochs: float
    cut: bool = False
    error: str | None = None

    def trials_per_gpu(self, most: int) -> int:
        """k of 1/k: as many as its memory holds and its time has work for, at most ``most`` (the CPUs beside it)."""
        if self.error is not None:
            return 1
        by_memory = int(self.total_bytes / (MEMORY_MARGIN * self.peak_bytes))
        by_time = math.ceil(FULL / max(self.busy, 0.01) - 1e-9)
        return max(1, min(by_memory, by_time, most))

    def seconds_beside(self, others: int, epochs: float) -> float:
        """How long a trial of ``epochs`` E takes on a card that it shares with so many of its kind."""
        whole = self.seconds * epochs / self.epochs if self.cut and self.epochs > 0 else self.seconds
        return whole * max(1.0, (others + 1) * self.busy)

    def describe(self) -> str:
        """For people."""
        if self.error is not None:
            return f"{self.card}: out of memory on a whole card"
        return (
            f"{self.card}: {self.peak_bytes / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB, "
            f"of it {self.outside_bytes / GIB:.1f} context; busy {self.busy:.0%} of {self.seconds:.0f} s"
            + (", then cut" if self.cut else "")
        )


def kinds(plan: Plan, image_size: int | Mapping[DataSource, int]) -> list[Kind]:
    """The kinds of a plan's trials, those that are searched first.

    Args:
        image_size: pixels of a side; where the plan has several data sets, of each.
    """
    found: dict[str, Kind] = {}

    def add(label: str, cells: Sequence[Cell], settings: Mapping[str, Any]) -> None:
        victim, defense = cells[0].victim, cells[0].defense
        batch = getattr(DEFENSES.create(defense, settings), "batch_size", None)
        pixels = image_size if isinstance(image_size, int) else image_size[cells[0].data]
        name = f"{defense}, {victim.model}{f' of width {victim.width}' if victim.width else ''}, {pixels} pixels"
        name += f", batch {batch}" if batch else ""
        known = found.get(name, Kind(name, (), (), settings))
        labels, members = dict.fromkeys((*known.labels, label)), dict.fromkeys((*known.cells, *cells))
        found[name] = dataclasses.replace(known, labels=tuple(labels), cells=tuple(members))

    for search in plan.searches:
        params = search.paper_params()
        if "batch_size" in params:
            item = search.space.distributions["batch_size"]
            params["batch_size"] = max(getattr(item, "choices", None) or [getattr(item, "high", params["batch_size"])])
        add(search.label, search.cells, search.settings(params))
        if search.fresh:
            add(search.confirm_label, search.fresh, search.settings(params))
    for job in plan.baselines:
        add(job.label, [job.cell], job.settings)
    return list(found.values())


def choose_shares(
    kinds: Sequence[Kind],
    measured: Mapping[str, Measurement],
    remaining: Mapping[str, int],
    nodes: Sequence[Node],
    cpus: int,
) -> dict[str, float]:
    """GPUs of the trials of each search and baseline: 1/k by kind, a whole card for kinds without a measurement.

    Kinds of a share with too few trials left to fill its slots once take the next larger share that is in use: actors
    of another size would be started for them, at the price of a trial or more each.

    Args:
        remaining: trials left, by label.
        nodes: with cards.
        cpus: of every trial.
    """
    most = max(int(node.cpus // cpus // node.gpus) for node in nodes if node.gpus)
    chosen = {kind.name: measured[kind.name].trials_per_gpu(most) if kind.name in measured else 1 for kind in kinds}
    left = {kind.name: sum(remaining.get(label, 0) for label in kind.labels) for kind in kinds}
    for k in sorted(set(chosen.values()), reverse=True):
        members = [name for name in chosen if chosen[name] == k]
        larger = [other for name, other in chosen.items() if other < k and left[name]]
        if larger and sum(left[name] for name in members) < count_slots(nodes, cpus, share_of(k)):
            chosen |= dict.fromkeys(members, max(larger))
    return {label: share_of(chosen[kind.name]) for kind in kinds for label in kind.labels}


def read_measurements(directory: Path) -> dict[str, Measurement]:
    """What was measured for the study in ``directory``, by kind; nothing where there is no such file."""
    path = directory / MEASURED_FILE
    try:
        return {name: Measurement(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("damaged file %s (%s): measured again", path, error)
        return {}


def write_measurements(directory: Path, measured: Mapping[str, Measurement]) -> None:
    """Keep them for whoever continues the study, or wants to know."""
    content = {name: dataclasses.asdict(item) for name, item in measured.items()}
    write_atomically(directory / MEASURED_FILE, (json.dumps(content, indent=1) + "\n").encode())


def still_valid(measured: Mapping[str, Measurement], nodes: Sequence[Node]) -> dict[str, Measurement]:
    """Those that were taken on a card of a type that is still there, as far as types are known."""
    there = {node.accelerator for node in nodes if node.gpus}
    return {name: item for name, item in measured.items() if item.accelerator in there or "" in there}
