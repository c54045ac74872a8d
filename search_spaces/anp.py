"""Adversarial neuron pruning. PAPER is BackdoorBench's default, with the threshold taken from validation data."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

SPACE = {
    "eps": FloatDistribution(0.1, 1.0),
    "alpha": FloatDistribution(0.0, 1.0),
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "iterations": IntDistribution(200, 4000, log=True),
    "acc_tol": FloatDistribution(0.005, 0.15),
}
PAPER = {"eps": 0.4, "alpha": 0.2, "lr": 0.01, "iterations": 2000, "acc_tol": 0.1}
