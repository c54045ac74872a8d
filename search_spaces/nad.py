"""Neural attention distillation. PAPER is BackdoorBench's default: beta 500, 1000, 1000, ten epochs each."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "beta": FloatDistribution(10.0, 1e4, log=True),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
    "te_epochs": IntDistribution(1, 20),
    "epochs": IntDistribution(1, 40),
    "p": CategoricalDistribution([1, 2, 4]),
}
PAPER = {"beta": 1000.0, "lr": 0.01, "te_epochs": 10, "epochs": 10, "p": 2}
