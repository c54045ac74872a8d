"""A user's own model, repaired in Python; see `superft.repair`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from study.run.one_trial import pick_device
from study.spec.methods import published_settings
from trainables.defenses.base import DEFENSES
from trainables.foreign.images import from_arrays
from trainables.foreign.repair import DEFAULT_DEFENSE, Repaired, repair_model


def repair_own(
    model: nn.Module,
    images: Any,
    labels: Any,
    classes: Sequence[str] | None,
    defense: str | None,
    settings: Mapping[str, Any],
    device: str | None,
    build: Callable[[], nn.Module] | None,
    **given: Any,
) -> Repaired:
    """See `superft.repair`; ``given`` are arguments of `repair_model`."""
    name = defense or DEFAULT_DEFENSE
    published = published_settings(name, "") if name in DEFENSES else {}
    made = DEFENSES.create(name, {**published, **settings})

    def seeded(generator: torch.Generator) -> nn.Module:
        assert build is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return build()

    return repair_model(
        model,
        from_arrays(images, labels, classes),
        made,
        device=pick_device(device),
        build=None if build is None else seeded,
        **given,
    )
