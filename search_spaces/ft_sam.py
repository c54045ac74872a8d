"""Sharpness-aware fine-tuning. PAPER is BackdoorBench's CIFAR-10 default, with a cosine over the actual steps."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "rho": FloatDistribution(0.05, 20.0, log=True),
    "lr": FloatDistribution(1e-4, 0.2, log=True),
    "epochs": IntDistribution(1, 100, log=True),
    "smoothing": CategoricalDistribution([0.0, 0.1]),
    "adaptive": CategoricalDistribution([True, False]),
}
PAPER = {"rho": 2.0, "lr": 0.01, "epochs": 100, "smoothing": 0.1, "adaptive": True}
