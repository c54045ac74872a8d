"""Which trials fit side by side: nodes, slots, and room for one more, never across the border of a node or a card."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from study.spec.parts import Resources
from study.spec.yaml_io import SpecError

RECOUNT_SECONDS = 2.0  # between looks at the nodes
UNIT = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Node:
    """What a machine has for trials; ``accelerator`` is Ray's name for its kind of card."""

    name: str
    cpus: float
    gpus: int = 0
    accelerator: str = ""


def share_of(trials_per_gpu: int) -> float:
    """The largest share that so many trials on one card can have: of 0.1429, 1/7 rounded up, Ray places only six."""
    return UNIT // trials_per_gpu / UNIT


def next_larger(gpus: float) -> float | None:
    """The share of one trial less per card; None where it is a whole card already."""
    return share_of(UNIT // _units(gpus) - 1) if 0 < gpus < 1 else None


def wanted_gpus(resources: Resources, nodes: Sequence[Node]) -> float | None:
    """GPUs that the spec gives every trial on these nodes; None: there are GPUs, and how many share one is measured.

    Raises:
        SpecError: it asks for GPUs and there are none, or no node fits a trial.
    """
    has_gpu, asked = any(node.gpus for node in nodes), resources.gpus_per_trial
    if asked == "auto":
        gpus = None if has_gpu else 0.0
    else:
        gpus = share_of(round(1 / asked)) if 0 < asked < 1 else float(asked)
        if gpus and not has_gpu:
            raise SpecError(f"resources.gpus_per_trial is {asked:g} but no node has a GPU; use 0 or auto")
    least, cpus = 1.0 if gpus is None else gpus, resources.cpus_per_trial
    if count_slots(nodes, cpus, least) == 0:
        raise SpecError(
            f"no node fits one trial of {counted(cpus, 'CPU')} and {counted(least, 'GPU')}: {describe_nodes(nodes)}; "
            "lower resources.cpus_per_trial or gpus_per_trial"
        )
    return gpus


def slots_on(node: Node, cpus: int, gpus: float) -> int:
    """How many trials of so many CPUs and GPUs a node holds."""
    fit = max(0, int(node.cpus // cpus))
    if gpus == 0:
        return fit
    return min(fit, node.gpus * (UNIT // _units(gpus)) if gpus < 1 else int(node.gpus // gpus))


def count_slots(nodes: Iterable[Node], cpus: int, gpus: float) -> int:
    """How many trials of so many CPUs and GPUs all of the nodes hold."""
    return sum(slots_on(node, cpus, gpus) for node in nodes)


def describe_nodes(nodes: Iterable[Node], slots: Callable[[Node], int] | None = None) -> str:
    """The nodes in a few words, equal ones together, each with its number of slots if asked for."""
    groups: dict[str, int] = {}
    for node in nodes:
        text = counted(node.cpus, "CPU") + (f" and {counted(node.gpus, 'GPU')}" if node.gpus else "")
        text += "" if slots is None else f": {counted(slots(node), 'slot')} each"
        groups[text] = groups.get(text, 0) + 1
    return "; ".join(f"{counted(count, 'node')} of {text}" for text, count in groups.items()) or "no nodes"


def counted(number: float, noun: str) -> str:
    """1 slot, 2 slots, 0.5 CPUs."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def describe_share(gpus: float) -> str:
    """1/4, 1, 3: a number of GPUs as people write it."""
    return f"1/{UNIT // _units(gpus)}" if 0 < gpus < 1 else f"{gpus:g}"


@dataclass
class _Place:
    """Where a running trial is thought to be; ``node`` None: nowhere, its node has gone."""

    gpus: int  # in ten-thousandths
    node: str | None = None
    cards: tuple[int, ...] = ()


class Room:
    """Where the running trials are, and whether another one fits; nodes come and go meanwhile.

    Places are guessed as Ray chooses them: the fullest card that still has room. Ray alone decides; a wrong guess
    makes a trial wait for its actor, and nothing else.

    Args:
        nodes: at the start.
        cpus: of every trial.
        recount: the nodes now; None: they stay as they are.
        clock: seconds; tests pass their own.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        cpus: int,
        recount: Callable[[], Sequence[Node]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cpus, self._recount, self._clock = cpus, recount, clock
        self._counted = clock()
        self._places: dict[str, _Place] = {}
        self._set_nodes(nodes)

    def fits(self, gpus: float) -> bool:
        """Whether a trial of so many GPUs fits beside those that run."""
        if self._recount is not None and self._clock() - self._counted > RECOUNT_SECONDS:
            self._counted = self._clock()
            if (nodes := list(self._recount())) != self.nodes:
                self._set_nodes(nodes)
        # A trial whose node has gone waits for a place: nothing new is started before it has one.
        return all(place.node is not None for place in self._places.values()) and self._find(_units(gpus)) is not None

    def take(self, trial: str, gpus: float) -> None:
        """``trial``, which `fits`, runs from now on."""
        self._places[trial] = self._put(_Place(_units(gpus)))

    def give_back(self, trial: str) -> None:
        """``trial`` has ended."""
        place = self._places.pop(trial)
        if place.node is not None:
            self._book(place, -1)
        for waiting in self._places.values():
            if waiting.node is None:
                self._put(waiting)

    @property
    def running(self) -> Counter[str]:
        """How many trials are thought to be on each node, by its name; may be asked from another thread."""
        return Counter(place.node for place in [*self._places.values()] if place.node is not None)

    def _set_nodes(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self._cpus = {node.name: node.cpus for node in nodes}
        self._cards = {node.name: [UNIT] * node.gpus for node in nodes}
        for place in self._places.values():
            if place.node in self._cpus and all(card < len(self._cards[place.node]) for card in place.cards):
                self._book(place, +1)
            else:
                place.node = None
        for place in self._places.values():
            if place.node is None:
                self._put(place)

    def _put(self, place: _Place) -> _Place:
        if (found := self._find(place.gpus)) is not None:
            place.node, place.cards = found
            self._book(place, +1)
        return place

    def _book(self, place: _Place, sign: int) -> None:
        assert place.node is not None
        self._cpus[place.node] -= sign * self.cpus
        for card in place.cards:
            self._cards[place.node][card] -= sign * min(place.gpus, UNIT)

    def _find(self, gpus: int) -> tuple[str, tuple[int, ...]] | None:
        """Node and cards with room for so many ten-thousandths of a GPU."""
        nodes = [name for name, free in self._cpus.items() if free >= self.cpus]
        if gpus == 0:  # Ray keeps nodes with cards for those who want one
            return (min(nodes, key=lambda name: len(self._cards[name])), ()) if nodes else None
        if gpus < UNIT:
            fitting = [
                (free, name, card) for name in nodes for card, free in enumerate(self._cards[name]) if free >= gpus
            ]
            return (min(fitting)[1], (min(fitting)[2],)) if fitting else None
        for name in nodes:
            unused = [card for card, free in enumerate(self._cards[name]) if free == UNIT]
            if len(unused) * UNIT >= gpus:
                return name, tuple(unused[: gpus // UNIT])
        return None


def _units(gpus: float) -> int:
    return round(gpus * UNIT)
