"""What every format that a victim is written in needs: the whole of the victim, and a folder that is written whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from study.run.evaluate_weights import stored_victim, victim_dataset
from study.spec.yaml_io import SpecError
from trainables.attacks.base import PoisonedSamples
from trainables.data.images import Dataset, TriggeredSet
from trainables.plugins.load import load_installed
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store


@dataclass(frozen=True)
class WholeVictim:
    """A victim as it is stored, with the clean data that it was made on."""

    name: str
    facts: dict[str, Any]
    state: dict[str, Tensor]
    poisoned: PoisonedSamples
    triggered: TriggeredSet
    dataset: Dataset

    @property
    def spec(self) -> dict[str, Any]:
        """What it was made from, as the store tells it."""
        spec: dict[str, Any] = self.facts["spec"]
        return spec


def whole_victim(victim: str, store: Place | None, download: bool) -> WholeVictim:
    """The victim of a store that is called, or alone begins with, ``victim``.

    Raises:
        SpecError, DataError: no such victim, other data than it was made on, or one that was not attacked on the whole
            of its data set.
    """
    load_installed()
    name, artifact = stored_victim(open_store(store), victim)
    facts, tensors = artifact.facts, artifact.tensors
    if facts["upstream"] is not None or facts["spec"]["reserved_fraction"] is not None:
        raise SpecError(
            f"--victim {name}: was not attacked on the whole of its data set, which the format has no place for"
        )
    triggered = TriggeredSet(**tensors["triggered_test"])
    dataset = victim_dataset(name, artifact, int(triggered.images.shape[-1]), download)
    return WholeVictim(name, facts, tensors["model"], PoisonedSamples(**tensors["poisoned"]), triggered, dataset)


def check_folder_place(out: Path, overwrite: bool, mark: str) -> None:
    """Refuse a folder that is there, unless it may be replaced and holds ``mark``, a file of ours (SpecError)."""
    if out.exists() and not (overwrite and (out / mark).is_file()):
        raise SpecError(f"--out {out}: is there already; choose another name, or give --overwrite for a folder of it")
    if not out.parent.is_dir():
        raise SpecError(f"--out {out}: {out.parent} is no folder")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write to, which takes its place in the end (SpecError: it cannot be written)."""
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    try:
        yield aside
        if out.exists():
            shutil.rmtree(out)
        aside.chmod(0o755)
        aside.rename(out)
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
