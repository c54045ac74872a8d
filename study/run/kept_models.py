"""Models that a study kept: one taken from its store, and those that are not on a front removed at the study's end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import safe_open
from torch import Tensor

from study.record.columns import to_frame
from study.record.kept import Keeping
from study.results.fronts import fronts
from study.run.repeat import Found
from trainables.foreign.weights import read_weights, refuse_unusable
from trainables.models.build import build_model
from trainables.storage.kept import KeptModels
from trainables.storage.messages import one_line
from trainables.storage.remote import Place
from trainables.storage.remote_store import open_store
from trainables.storage.store import Store, StoreUnavailableError

# What the header of a kept file says of its trial, beside the row.
OF_A_TRIAL = ("trial", "attack", "seed", "defense_seed", "model")


class KeptModelError(Exception):
    """A kept file that is gone, or is not what its row says: one line."""


@dataclass(frozen=True)
class TrialModel:
    """The repaired model of a trial.

    Args:
        state: its state dict.
        num_classes: outputs.
        versions, code: of what made it.
        kept: name and hash of the file that the study kept; None: it was made again.
        moved: columns in which the trial, run again, differs from its row: (then, now).
    """

    state: Mapping[str, Tensor]
    num_classes: int
    versions: str
    code: str
    kept: Mapping[str, str] | None = None
    moved: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def read_kept(found: Found, store: Place | None = None) -> TrialModel | None:
    """The model that the study kept of a trial, held against the trial's row; classes, versions and code are the row's.

    None: it was removed because the setting is on no front, as the study wanted it.

    Args:
        store: where it is not the study's.

    Raises:
        KeptModelError: the file is gone, damaged or another one, or its store cannot be read.
    """
    row = found.row
    name, place = str(row["kept"]), open_store(found.spec.store if store is None else store)
    called = f"kept model {name} of store {place.where}"
    try:
        with KeptModels(place).opened(name) as path:
            if path is None:
                if found.spec.keep == "front" and row["trial"] not in on_fronts(found.rows):
                    return None
                raise KeptModelError(f"{called} is there no more")
            file = read_weights(path)
            if file.sha256 != row.get("kept_sha256"):
                raise KeptModelError(f"{called} is damaged: its hash is not that of its row")
            with safe_open(path, framework="pt") as opened:
                facts = opened.metadata() or {}
    except (StoreUnavailableError, ValueError) as error:  # a ModelError is one
        raise KeptModelError(f"{called} cannot be used ({one_line(error)})") from error
    strange = [key for key in OF_A_TRIAL if facts.get(key) != str(row.get(key))]
    if strange:
        raise KeptModelError(f"{called} is of another trial by its {', '.join(strange)}")
    state = file.states[""]
    try:
        classes = len(json.loads(row["accuracy_by_class"]))
        own = build_model(row["model"], num_classes=classes, width=row["width"], image_size=row["image_size"])
        refuse_unusable(state, called)
    except (ValueError, KeyError, TypeError) as error:
        raise KeptModelError(f"{called} cannot be used ({one_line(error)})") from error
    if {key: value.shape for key, value in own.state_dict().items()} != {
        key: value.shape for key, value in state.items()
    }:
        raise KeptModelError(f"{called} is no {row['model']} of {classes} classes")
    told = {"name": name, "sha256": file.sha256}
    return TrialModel(state, classes, row["versions"], row["code"], told)


def tidy_kept(keeping: Keeping | None, store: Store, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Remove the models of a finished study that are not on a front, where it keeps those alone; what to say of it.

    Whatever else lies in the store, of other studies or of unknown origin, stays.
    """
    if keeping is None or keeping.what != "front":
        return []
    rows = list(rows)
    members = on_fronts(rows)
    beside = [name for name, row in keeping.names_in(rows).items() if row["trial"] not in members]
    try:
        removed = KeptModels(store).discard(beside)
    except OSError as error:
        return [f"WARNING: kept models that are not on a front cannot be removed from {store.where}: {one_line(error)}"]
    if not removed:
        return []
    stay = sum(bool(row.get("kept")) for row in rows if row["trial"] in members)
    return [f"kept: models on fronts: {stay}, in {store.where}; removed, since they are on none: {len(removed)}"]


def on_fronts(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Ids of the settings on a front of a study, of those over all attacks and of those of each."""
    return set(fronts(to_frame(rows))["trial"])
