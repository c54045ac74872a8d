"""A rule of choice for a user's own model: checked before any work, its trials on Ray, its rows in a folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from study.cluster.connect import ray_cluster
from study.cluster.workers import OnRay
from study.record.files import write_atomically
from study.record.folder import LEDGER_FILE
from study.record.tried import TriedRows
from study.report.figures.planted import planted_png
from study.report.figures.style import as_png
from study.results.transfer import all_rules
from study.run.choosing import Chooser
from study.spec.yaml_io import SpecError
from trainables.choice.base import CANDIDATES, Choice, Rule, Suspect

LEDGERS = "ledgers"  # the setting of a rule that learns from studies
PICTURE = "planted.png"
RETRIES = 3  # of a piece whose worker or node was lost


@dataclass(frozen=True)
class Chosen:
    """What was asked for.

    Args:
        rule: its name.
        trials: candidates to try; None: all known ones, where the rule tries any.
        ledgers: folders of studies, or their trials.jsonl.
        settings: of the rule, over its defaults.
        defense: that the user named beside it.
    """

    rule: str
    trials: int | None = None
    ledgers: Sequence[Path] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    defense: str | None = None


def make_rule(asked: Chosen) -> Rule:
    """The rule with its settings (SpecError, SettingError: one that cannot be carried out as asked)."""
    rules = all_rules()
    cls = rules.get(asked.rule)
    settings = dict(asked.settings)
    takes = getattr(cls, "__dataclass_fields__", {})
    if LEDGERS in takes:
        if not asked.ledgers:
            raise SpecError(f"--choose {asked.rule}: chooses by studies of other attacks; name them with --ledger DIR")
        files = [path / LEDGER_FILE if path.is_dir() else path for path in asked.ledgers]
        if missing := [path for path in files if not path.is_file()]:
            raise SpecError(f"--ledger {missing[0]}: there is no such file; give the folder of a study")
        settings[LEDGERS] = ",".join(map(str, files))
        if asked.defense is not None:
            settings["defense"] = asked.defense
    elif asked.ledgers:
        raise SpecError(f"--ledger: rule {asked.rule} learns from no study; rules that do: transfer")
    if cls.defenses and asked.defense is not None and asked.defense not in cls.defenses:
        raise SpecError(
            f"--choose {asked.rule}: has settings of {' and '.join(cls.defenses)} alone, not of {asked.defense}; leave "
            "--defense out"
        )
    if asked.trials is not None and cls.tries == "nothing":
        raise SpecError(f"--trials: rule {asked.rule} tries no candidates")
    if asked.trials is not None and asked.trials < 1:
        raise SpecError(f"--trials {asked.trials}: must be at least 1")
    if asked.trials is not None and asked.trials > len(CANDIDATES) and cls.tries == "model":
        raise SpecError(
            f"--trials {asked.trials}: rule {asked.rule} has {len(CANDIDATES)} candidates and proposes none"
        )
    return rules.create(asked.rule, settings)


@contextlib.contextmanager
def chooser(
    rule: Rule,
    trials: int | None,
    device: torch.device,
    folder: Path | None,
    say: Callable[[str], None] | None,
) -> Iterator[Callable[[Suspect], Choice]]:
    """What `repair_model` takes in place of a defense; Ray runs only where the rule tries candidates.

    Args:
        device: of the pieces: on CUDA each has a whole card, else a core.
        folder: of the rows, by which the same call goes on; None: they are not kept.
    """
    if rule.tries == "nothing":
        yield rule.choose
        return
    count = len(CANDIDATES) if trials is None else trials
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder
        place.mkdir(exist_ok=True)
        rows = stack.enter_context(contextlib.closing(TriedRows(place)))
        stack.enter_context(ray_cluster(None))
        workers = OnRay(gpus=1 if device.type == "cuda" else 0, retries=RETRIES)
        choose = Chooser(rule, count, workers, rows, say)

        def drawn(suspect: Suspect) -> Choice:
            choice = choose(suspect)
            draw(choice, place)
            return choice

        yield drawn


def draw(choice: Choice, folder: Path) -> None:
    """The front of the planted triggers, beside the rows; none where nothing was planted."""
    figure = planted_png(choice.table, None if choice.candidate is None else choice.candidate.label)
    if figure is not None:
        write_atomically(folder / PICTURE, as_png(figure))
