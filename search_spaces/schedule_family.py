"""The family of schedules that super-fine-tuning, plain fine-tuning and the one-cycle policy are points of.

What is asked of it is the schedule: how long it is, its phases, their peaks and triangles. Settings of the defense
follow. The total length is a parameter of its own and is met exactly, so that schedules can be compared at equal steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import OnlyIf
from search_spaces.space import Space
from search_spaces.steps import LONGEST

# Shorter ones have too few steps for eight triangles in a tenth of them.
SHORTEST = 200
FAMILY: dict[str, BaseDistribution] = {
    "steps": IntDistribution(SHORTEST, LONGEST, log=True),
    "shape": CategoricalDistribution(["linear", "cosine", "exp", "constant", "one_cycle"]),
    "phases": CategoricalDistribution([1, 2, 3]),
    "lr_max1": FloatDistribution(1e-2, 2.0, log=True),
    "lr_max2": FloatDistribution(1e-4, 1e-1, log=True),
    "lr_max3": FloatDistribution(1e-5, 1e-2, log=True),
    # Of the steps before the cool-down; the phases behind it share the rest.
    "phase1_share": FloatDistribution(0.1, 0.9, step=0.1),
    "cycles": CategoricalDistribution([1, 2, 4, 8]),
    "lr_base": FloatDistribution(1e-6, 1e-2, log=True),
    # 0 begins at the peak: one phase of shape cosine is then fine-tuning along a cosine.
    "up_fraction": FloatDistribution(0.0, 0.9, step=0.1),
    "cooldown_share": FloatDistribution(0.0, 0.3, step=0.1),
    "momentum_mode": CategoricalDistribution(["constant", "inverse"]),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "grad_clip": CategoricalDistribution([None, 1.0, 5.0]),
}
MOVES = OnlyIf("shape", ("linear", "cosine", "exp", "one_cycle"))
SECOND, THIRD = OnlyIf("phases", (2, 3)), OnlyIf("phases", (3,))
CONDITIONS = {
    "lr_max2": (SECOND,),
    "lr_max3": (THIRD,),
    "phase1_share": (SECOND,),
    # A constant rate has no triangles, and no base that it comes back to and cools down from.
    **dict.fromkeys(("cycles", "lr_base", "up_fraction", "cooldown_share", "momentum_mode"), (MOVES,)),
}
# How far below the base the rate is at the end of a cool-down (Smith 2018: several orders of magnitude below the peak).
COOLDOWN = 100
_ALIKE = {"steps": 1000, "phases": 1, "lr_max1": 0.1, "weight_decay": 5e-4, "grad_clip": None}
# At the steps and the peak of the published schedule.
STARTS: dict[str, dict[str, Any]] = {
    "ft_cosine": {
        **_ALIKE,
        "shape": "cosine",
        "cycles": 1,
        "lr_base": 1e-6,
        "up_fraction": 0.0,
        "cooldown_share": 0.0,
        "momentum_mode": "constant",
    },
    "ft_constant": {**_ALIKE, "shape": "constant"},
    "one_cycle": {
        **_ALIKE,
        "shape": "one_cycle",
        "cycles": 1,
        "lr_base": 3e-4,
        "up_fraction": 0.3,
        "cooldown_share": 0.1,
        "momentum_mode": "inverse",
    },
}


def _to_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    moves, phases = params["shape"] != "constant", int(params["phases"])
    cooldown = round(params["steps"] * params["cooldown_share"]) if moves else 0
    cycles = params["cycles"] if moves else 1
    before = params["steps"] - cooldown
    first = before if phases == 1 else min(before - phases + 1, max(1, round(before * params["phase1_share"])))
    third = (before - first) // 2 if phases == 3 else 0
    lengths = (first, before - first - third, third)[:phases]
    # The last triangle of a phase may be cut short by less than there are triangles, so that the length is met.
    own, others = (-(-length // cycles) for length in (first, max(1, before - first - third)))
    settings = {
        "shape": params["shape"],
        "phases": phases,
        **{f"lr_max{phase}": params[f"lr_max{phase}"] for phase in range(1, phases + 1)},
        **{f"cycles{phase}": length / (own if phase == 1 else others) for phase, length in enumerate(lengths, 1)},
        "iterations": own if phases == 1 else others,
        "weight_decay": params["weight_decay"],
        "grad_clip": params["grad_clip"],
    }
    if phases > 1:
        settings["iterations1"] = None if own == others else own
    if moves:
        settings |= {name: params[name] for name in ("lr_base", "up_fraction", "momentum_mode")}
        settings["cooldown_steps"] = cooldown
        settings["cooldown_lr"] = params["lr_base"] / COOLDOWN if cooldown else None
    return settings


def _to_params(paper: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**paper, **given}
    phases = int(settings["phases"])
    period = settings["iterations"] if settings["iterations1"] is None or phases == 1 else settings["iterations1"]
    periods = (period, settings["iterations"], settings["iterations"])[:phases]
    first, *rest = (round(each * settings[f"cycles{phase}"]) for phase, each in enumerate(periods, 1))
    before = first + sum(rest)
    cooldown = settings["cooldown_steps"] if settings["shape"] != "constant" else 0
    begun = math.ceil(first / period) if period else 1
    params = {
        **{name: settings[name] for name in FAMILY if name in settings},
        "phases": phases,
        "steps": before + cooldown,
        "phase1_share": round(first / before, 1) if before else 1.0,
        "cycles": 2 ** math.ceil(math.log2(max(1, begun))),
        "cooldown_share": round(cooldown / (before + cooldown), 1) if cooldown else 0.0,
    }
    return {name: params[name] for name in FAMILY}


def schedule_family(paper: Mapping[str, Any]) -> Space:
    """The family around a published point of `super_ft`."""
    return Space(
        FAMILY,
        paper,
        _to_settings,
        partial(_to_params, paper),
        conditions=CONDITIONS,
        starts=STARTS,
    )
