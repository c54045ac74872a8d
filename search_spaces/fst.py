"""Feature-shift tuning. PAPER is the paper's CIFAR-10 setting (arXiv:2310.01875)."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "alpha": FloatDistribution(1e-4, 1.0, log=True),
    "lr": FloatDistribution(1e-4, 0.2, log=True),
    "epochs": IntDistribution(1, 30),
    "reinit": CategoricalDistribution([True, False]),
}
PAPER = {"alpha": 0.2, "lr": 0.01, "epochs": 10, "reinit": True}
