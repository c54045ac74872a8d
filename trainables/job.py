"""What is sent to an actor, a `Job`, and what comes back, one `Report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainables.data.load import DataSource
from trainables.evaluation.aftermath.settings import Aftermath
from trainables.evaluation.curve import Every
from trainables.victims.spec import VictimSpec

Role = Literal["search", "repeat", "confirm", "baseline", "control"]


@dataclass(frozen=True)
class Cell:
    """An attack + defense combination on a data set, model and seed: a trial without the defense's settings.

    Args:
        data: the task.
        victim: the backdoored model to repair; its seed is the cell's.
        defense: registered name.
        clean_fraction: share of every class that the defender holds, in (0, 1].
        clean_source: ``overlap``, ``unpoisoned`` or ``heldout``, see `victims.Victim.clean_split`; or ``folder:PATH``:
            other images of the same classes, see `defender_data`.
        upstream: the attacker's data, where the victim's scenario has one beside the user's (``data``).
        fresh_head: defenders with clean data get the model with its head initialised anew and train it themselves;
            without data nobody can, so the others get the head that was trained on all of the user's data.
        control: the clean model takes the victim's place, under the victim's trigger.
        scenario: what the data set is to the attacker, as spelled in a spec: ``standalone``, ``same-label``,
            ``new-head`` or ``encoder``.
        defense_label: the defense's name in the study, where that is another than its registered one.
        defense_seed: of the defender: which clean images he holds, and the draws of the repair.
        combination: name of the combination of a sweep that it belongs to; empty: the study sweeps nothing.
        swept: the keys and values of that combination, as JSON.
        label_noise: share of the defender's images with a wrong label, in [0, 1), see `defender_data`.
        residual_poison: share of them that carries the victim's trigger and the attacker's label, in [0, 1).
    """

    data: DataSource
    victim: VictimSpec
    defense: str
    clean_fraction: float = 1.0
    clean_source: str = "overlap"
    upstream: DataSource | None = None
    fresh_head: bool = False
    control: bool = False
    scenario: str = "standalone"
    defense_label: str = ""
    defense_seed: int = 0
    combination: str = ""
    swept: str = ""
    label_noise: float = 0.0
    residual_poison: float = 0.0

    @property
    def label(self) -> str:
        """The defense's name in the study."""
        return self.defense_label or self.defense

    @property
    def is_spoiled(self) -> bool:
        """Whether some of the defender's images are mislabelled or poisoned."""
        return self.label_noise > 0 or self.residual_poison > 0

    @property
    def place(self) -> tuple[str, int, int]:
        """Attack, seed and defense seed: what tells it from the other cells of a search or a baseline."""
        return self.attack, self.seed, self.defense_seed

    @property
    def whose(self) -> tuple[str, int, str]:
        """Attack, seed and combination: within a study they name its victim."""
        return self.attack, self.seed, self.combination

    @property
    def made_from(self) -> tuple[VictimSpec, DataSource, DataSource | None]:
        """What its victim is made from; cells that share this share the victim."""
        return self.victim, self.data, self.upstream

    @property
    def attack(self) -> str:
        """Registered name of the attack."""
        return self.victim.attack

    @property
    def seed(self) -> int:
        """The victim's seed."""
        return self.victim.seed

    def columns(self) -> dict[str, Any]:
        """The columns of a row that are known before its trial runs, see `columns.CELL_COLUMNS` and its neighbour."""
        return {
            "attack": self.attack,
            "defense": self.defense,
            "defense_label": self.label,
            "dataset": self.data.name,
            "model": self.victim.model,
            "seed": self.seed,
            "defense_seed": self.defense_seed,
            "combination": self.combination,
            "swept": self.swept or None,
            "scenario": self.scenario,
            "clean_fraction": self.clean_fraction,
            "clean_source": self.clean_source,
            "label_noise": self.label_noise,
            "residual_poison": self.residual_poison,
            "poison_rate": getattr(self.victim.make_attack(), "poison_rate", None),
            "width": self.victim.width,
        }


@dataclass(frozen=True)
class Job:
    """One trial that is to run: a setting on a cell.

    Args:
        label: of the search that it belongs to (``badnets/super_ft``), or of a baseline (``badnets/ft/baseline``).
        trial: id of the setting within the study (``badnets/super_ft/0007``); a baseline's is its label. Several
            cells may share it.
        role: ``search``; ``repeat``: of a search that is made once more; ``confirm``: a chosen setting on a fresh seed;
            ``baseline``; or ``control``: a baseline on the clean model.
        cell: what the setting is scored on.
        settings: of the defense, complete enough to rebuild it.
        published: whether they are exactly the published point.
        curve: how often the model is measured along the repair, see `evaluation.curve`; None: only in the end.
        aftermath: what is asked of its repaired model; None: nothing.
        keep: name in the store under which its repaired model is kept, see `storage.kept`; empty: it is not.
    """

    label: str
    trial: str
    role: Role
    cell: Cell
    settings: Mapping[str, Any]
    published: bool
    curve: Every | None = None
    aftermath: Aftermath | None = None
    keep: str = ""

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells its row from all others of the study: trial, attack, seed, defense seed."""
        return self.trial, *self.cell.place


@dataclass(frozen=True)
class Row:
    """The trial was measured. ``columns``: of its row, as one JSON text (Tune would flatten and copy each of them).

    ``curve``: points of `evaluation.curve.Curve`, likewise; empty: none was asked for.
    """

    columns: str
    curve: str = ""


@dataclass(frozen=True)
class Cut:
    """The trial took longer than it may."""

    cause: str


@dataclass(frozen=True)
class Failed:
    """The method, or the trial around it, raised an error that would come again: one line with its place."""

    cause: str


@dataclass(frozen=True)
class OutOfMemory:
    """The trial found too little memory on its share of the card."""

    cause: str


@dataclass(frozen=True)
class StoreLost:
    """The store of victims did not answer, or holds the victim no more."""

    cause: str


@dataclass(frozen=True)
class NoGpu:
    """The trial's process was given a GPU that torch does not find."""

    cause: str


Report = Row | Cut | Failed | OutOfMemory | StoreLost | NoGpu
