"""Which victims of a study hold a backdoor, ``victims.json``: judged once, before the first trial on them.

A study that is continued, on this machine or another, follows what it decided before: a victim that had to be trained
again may come out on the other side of a border, and half a study on it would be no study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study.record.files import write_atomically
from study.spec.yaml_io import SpecError

VICTIMS_FILE = "victims.json"
NO_REASON = "so the rows of this study say"
Key = tuple[str, int, str]  # attack, seed and combination of the sweep, if any: in one study they name a victim


class NoBackdoorError(Exception):
    """A victim holds no backdoor, and the study wants to stop then; the message says which and why, in one line."""


@dataclass(frozen=True)
class Judged:
    """A victim as it was before any repair.

    Args:
        attack, seed, combination: it is the study's only victim of these; combinations may share it.
        victim: its name in the store.
        not_implanted: which condition for a backdoor failed, in words; None if it holds one, or none was meant.
        asr, asr_base, clean_accuracy: on all test images.
    """

    attack: str
    seed: int
    victim: str
    not_implanted: str | None
    asr: float
    asr_base: float | None
    clean_accuracy: float
    combination: str = ""

    @property
    def key(self) -> Key:
        """What its rows and cells are found by."""
        return self.attack, self.seed, self.combination

    def __str__(self) -> str:
        where = f"{self.combination}/" if self.combination else ""
        return f"{where}{self.attack} (seed {self.seed}): {self.not_implanted or 'holds a backdoor'}"


def read_victims(directory: Path) -> dict[Key, Judged]:
    """What was decided in a study's folder; nothing yet where there is no such file (SpecError if it is damaged)."""
    path = directory / VICTIMS_FILE
    if not path.exists():
        return {}
    try:
        found = [Judged(**item) for item in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise SpecError(f"{path} is damaged ({error}); without it, the study judges its victims again") from error
    return {item.key: item for item in found}


def decided(directory: Path, rows: Iterable[Mapping[str, Any]]) -> dict[Key, Judged]:
    """The same; a study of an earlier version has no such file, and goes on as its rows say."""
    found: dict[Key, Judged] = {}
    for row in rows:
        if row.get("asr_before") is None or row.get("role") == "control":
            continue
        one = Judged(
            attack=row["attack"],
            seed=row["seed"],
            victim=row.get("victim") or "",
            not_implanted=(row.get("error") or NO_REASON) if row["status"] == "backdoor_not_implanted" else None,
            asr=row["asr_before"],
            asr_base=row.get("asr_base"),
            clean_accuracy=row["clean_accuracy_before"],
            combination=row.get("combination") or "",
        )
        if one.key not in found or one.not_implanted is not None:
            found[one.key] = one
    return found | read_victims(directory)


def write_victims(directory: Path, judged: Iterable[Judged]) -> None:
    """Write all that was decided."""
    write_atomically(directory / VICTIMS_FILE, json.dumps([asdict(item) for item in judged], indent=1).encode())


def absent(judged: Mapping[Key, Judged]) -> dict[Key, Judged]:
    """Those without a backdoor."""
    return {key: item for key, item in judged.items() if item.not_implanted is not None}


def each_once(judged: Iterable[Judged]) -> list[Judged]:
    """Every victim once, also where several combinations of a sweep share it."""
    found: dict[tuple[str, ...], Judged] = {}
    for one in judged:
        found.setdefault((one.victim,) if one.victim else (one.attack, str(one.seed), one.combination), one)
    return list(found.values())


def absent_in_words(judged: Mapping[Key, Judged], policy: str) -> list[str]:
    """How many victims hold no backdoor and what follows, then a line for each with the reason; nothing if all do.

    Args:
        policy: ``victim.require_implanted``.
    """
    missing = each_once(absent(judged).values())
    if not missing:
        return []
    total, few = len(each_once(judged.values())), len(missing)
    count = "the only victim" if total == few == 1 else f"{few} of {total} victims"
    which = "its trials" if few == 1 else "their trials"
    follows = f"{which} are not run" if policy != "run" else f"{which} count in no front"
    everything = few == total
    follows += ", so there is no search and no front" if everything else ""
    return [f"no backdoor in {count}; {follows}:", *(f"  {one}" for one in missing)]
