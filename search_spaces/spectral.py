"""Spectral signatures. PAPER is BackdoorBench's default: 15 % of every class. The share assumed dominates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.space import Space

SPACE = {
    "remove_fraction": FloatDistribution(0.005, 0.4, log=True),
    "feature_layer": CategoricalDistribution(["stage4_pooled", "stage3_pooled"]),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
}
# What decides which images are left out: tuned first, without any training (see `Space.split`).
DETECTOR = ("remove_fraction", "feature_layer")
PAPER = {
    "remove_fraction": 0.15,
    "reference": "class",
    "feature_layer": "stage4_pooled",
    "lr": 0.01,
    "epochs": 100,
    "batch_size": 256,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
# On Tiny ImageNet BackdoorBench's rate falls where the loss stands still; here it falls along a cosine.
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}, "tiny_imagenet": {"epochs": 200}}

# Any change of the share is another kept set and so another training: on a grid there are few, and the rate is shared.
FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
DETECTOR_SPACE = {
    "remove_level": IntDistribution(0, len(FRACTIONS) - 1),
    "feature_layer": SPACE["feature_layer"],
}


def _from_level(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"remove_fraction": FRACTIONS[params["remove_level"]], "feature_layer": params["feature_layer"]}


def _to_level(settings: Mapping[str, Any]) -> dict[str, Any]:
    level = min(range(len(FRACTIONS)), key=lambda i: abs(FRACTIONS[i] - settings["remove_fraction"]))
    return {"remove_level": level, "feature_layer": settings["feature_layer"]}


VARIANTS = {"detector": Space(DETECTOR_SPACE, PAPER, _from_level, _to_level)}
