"""A user's own model, repaired in Python; see `superft.repair`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from study.run.one_trial import pick_device
from study.run.own_choice import Chosen, chooser, make_rule
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
    choose: tuple[str, int | None, Sequence[Path]] | None,
    device: str | None,
    build: Callable[[], nn.Module] | None,
    **given: Any,
) -> Repaired:
    """See `superft.repair`; ``choose`` is rule, trials and ledgers, ``given`` are arguments of `repair_model`."""
    place = pick_device(device)
    if choose is not None:
        rule_name, trials, ledgers = choose
        rule = make_rule(Chosen(rule_name, trials, ledgers, settings, defense))
        how: contextlib.AbstractContextManager[Any] = chooser(rule, trials, place, None, given.get("say"))
    else:
        name = defense or DEFAULT_DEFENSE
        published = published_settings(name, "") if name in DEFENSES else {}
        how = contextlib.nullcontext(DEFENSES.create(name, {**published, **settings}))

    def seeded(generator: torch.Generator) -> nn.Module:
        assert build is not None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            return build()

    clean = from_arrays(images, labels, classes)
    with how as made:
        return repair_model(model, clean, made, device=place, build=None if build is None else seeded, **given)
