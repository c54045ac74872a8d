"""Schedule of Super-Fine-Tuning. The ranges hold the sweeps of Figures 14 and 15 of the paper (arXiv:2212.09067)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.schedule_family import schedule_family
from search_spaces.space import Space
from search_spaces.steps import LONGEST_TRIANGLE

SPACE = {
    "lr_base": FloatDistribution(1e-5, 1e-2, log=True),
    "lr_max1": FloatDistribution(1e-2, 2.0, log=True),
    "lr_max2": FloatDistribution(1e-4, 1e-1, log=True),
    "iterations": IntDistribution(20, LONGEST_TRIANGLE, log=True),
}
PAPER = {
    "lr_base": 3e-4,
    "lr_max1": 0.1,
    "lr_max2": 1e-3,
    "lr_max3": 1e-3,
    "iterations": 500,
    "iterations1": None,
    "length_unit": "step",
    "cycles1": 1.0,
    "cycles2": 1.0,
    "cycles3": 1.0,
    "phases": 2,
    "up_fraction": 0.5,
    "shape": "linear",
    "equal_mass": False,
    "granularity": "step",
    "phase_reset": True,
    "peak_decay": 1.0,
    "cooldown_steps": 0,
    "cooldown_lr": None,
    "momentum": 0.9,
    "momentum_mode": "constant",
    "weight_decay": 5e-4,
    "optimizer": "sgd",
    "batch_size": 256,
    "grad_clip": None,
    "bn_mode": "train",
    "augment": True,
    "scope": "all",
    "select": "last",
}
# The paper has one schedule for all of its data sets.
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}}

# Keeps lr_base <= lr_max2 <= lr_max1 by searching ratios instead of rejecting points.
ORDERED_SPACE = {
    "lr_max1": FloatDistribution(1e-2, 2.0, log=True),
    "max1_over_max2": FloatDistribution(1.0, 1e3, log=True),
    "max2_over_base": FloatDistribution(1.0, 1e3, log=True),
    "iterations": SPACE["iterations"],
}


def _from_ratios(params: Mapping[str, Any]) -> dict[str, Any]:
    lr_max2 = params["lr_max1"] / params["max1_over_max2"]
    return {
        "lr_base": lr_max2 / params["max2_over_base"],
        "lr_max1": params["lr_max1"],
        "lr_max2": lr_max2,
        "iterations": params["iterations"],
    }


def _to_ratios(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "lr_max1": settings["lr_max1"],
        "max1_over_max2": settings["lr_max1"] / settings["lr_max2"],
        "max2_over_base": settings["lr_max2"] / settings["lr_base"],
        "iterations": settings["iterations"],
    }


VARIANTS = {
    "ordered": Space(ORDERED_SPACE, PAPER, _from_ratios, _to_ratios),
    # Not the four numbers alone, but what the schedule is.
    "family": schedule_family(PAPER),
}
