"""The work of a rule in pieces that any process can do: plant one copy, or try one candidate on one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.choice.base import Attempt, Candidate, Suspect
from trainables.choice.planted import planted_copy
from trainables.choice.planting import Copy
from trainables.machine.provenance import code
from trainables.machine.threads import on_threads
from trainables.models.classifier import Classifier
from trainables.training.arithmetic import arithmetic
from trainables.training.loop import Counters

# Of every piece, wherever it is done: other numbers of threads round otherwise, and a repair may end elsewhere.
THREADS = 1


@dataclass(frozen=True)
class Tried:
    """What a piece of work gives back.

    Args:
        attempt: with the repaired model where it was the suspect itself; without it where it was a copy.
        obeyed: triggered images that still go to the target, of a copy.
        looking: work of counting them.
    """

    attempt: Attempt
    obeyed: int | None = None
    looking: Counters = field(default_factory=Counters)


def plant_there(suspect: Suspect, kind: str, device: torch.device) -> Copy:
    """A planted copy of ``suspect``, made on ``device``; on the CPU."""
    with on_threads(THREADS):
        return planted_copy(suspect.to(device), kind).to(torch.device("cpu"))


def try_there(on: Suspect | Copy, candidate: Candidate, device: torch.device) -> Tried:
    """``candidate`` tried on the suspect, or on a planted copy of it, on ``device``."""
    with on_threads(THREADS):
        moved = on.to(device)
        if isinstance(moved, Suspect):
            return Tried(moved.attempt(candidate))
        obeyed, looking = moved.obeyed(candidate)
        return Tried(moved.suspect.attempt(candidate), obeyed, looking)


def for_travel(suspect: Suspect) -> Suspect:
    """The suspect on the CPU, for other processes: its trainer makes no new models, which only a closure could."""
    moved = suspect.to(torch.device("cpu"))
    moved.trainer.new_model = _no_new_model
    return moved


def _no_new_model(generator: torch.Generator) -> Classifier:
    raise NotImplementedError("no candidate of a rule begins with a new model")


def digest(suspect: Suspect) -> str:
    """Eight hex digits of what decides how a candidate ends on ``suspect``: model, images, seed, arithmetic."""
    trainer, images = suspect.trainer, suspect.images
    with on_threads(THREADS):
        how = arithmetic(trainer.device, trainer.precision)
    facts = {
        "seed": trainer.seed,
        "flip": trainer.flip,
        "padding": trainer.padding,
        "arithmetic": how,
        "torch": torch.__version__,
        "code": code(),
    }
    parts: Mapping[str, Tensor] = {
        **suspect.model.state_dict(),
        **{f"{name} images": getattr(images, name).images for name in ("train", "validation")},
        **{f"{name} labels": getattr(images, name).labels for name in ("train", "validation")},
    }
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in parts.items():
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(_bytes(plain))
    return found.hexdigest()[:8]


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
