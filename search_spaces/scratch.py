"""Training from scratch at equal compute. PAPER is super-FT's own schedule on random weights."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

SPACE = {
    "arm": CategoricalDistribution(["same_schedule", "one_cycle"]),
    "lr": FloatDistribution(0.01, 2.0, log=True),
    "weight_decay": FloatDistribution(1e-6, 5e-3, log=True),
    "warm_fraction": FloatDistribution(0.05, 0.7),
}
PAPER = {"arm": "same_schedule", "lr": 0.1, "weight_decay": 5e-4, "warm_fraction": 0.3}
