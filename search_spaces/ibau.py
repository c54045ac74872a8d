"""Implicit unlearning. PAPER is BackdoorBench's default with the paper's objective (all images, norm at most 10)."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "lr": FloatDistribution(1e-5, 3e-3, log=True),
    "rounds": IntDistribution(1, 20),
    "fixed_point_iterations": IntDistribution(1, 10),
    "norm_bound": FloatDistribution(1.0, 100.0, log=True),
    "patch_portion": CategoricalDistribution([0.01, 0.1, 0.5, 1.0]),
}
PAPER = {"lr": 1e-4, "rounds": 5, "fixed_point_iterations": 5, "norm_bound": 10.0, "patch_portion": 1.0}
