"""Conventional fine-tuning. PAPER is BackdoorBench's default; the rate dominates everything else."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "epochs": IntDistribution(1, 100, log=True),
    "momentum": CategoricalDistribution([0.0, 0.9]),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "scope": CategoricalDistribution(["all", "classifier", "last_block+classifier", "bn_only"]),
}
PAPER = {"lr": 0.01, "epochs": 100, "momentum": 0.9, "weight_decay": 5e-4, "scope": "all", "steps": None}
