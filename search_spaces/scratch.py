"""Training from scratch at equal compute. PAPER is super-FT's own schedule on random weights.

Peak and length are searched as super-FT's own are.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.steps import LONGEST_TRIANGLE
from trainables.defenses.base import published_steps

SPACE = {
    "arm": CategoricalDistribution(["same_schedule", "one_cycle"]),
    "lr_max1": FloatDistribution(0.01, 2.0, log=True),
    "iterations": IntDistribution(20, LONGEST_TRIANGLE, log=True),
    "weight_decay": FloatDistribution(1e-6, 5e-3, log=True),
    "warm_fraction": FloatDistribution(0.05, 0.7),
}
PAPER = {
    "arm": "same_schedule",
    "lr_max1": 0.1,
    "lr_base": 3e-4,
    "lr_max2": 1e-3,
    "iterations": 500,
    "warm_fraction": 0.3,
    "long_steps": published_steps(epochs=100, images=50_000, batch_size=256),
    "reinit_stages": 1,
    "weight_decay": 5e-4,
    "momentum": 0.9,
    "batch_size": 256,
    "augment": True,
}
# Super-FT's paper has one schedule for all of its data sets.
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}}
