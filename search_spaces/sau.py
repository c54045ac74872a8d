"""Shared adversarial unlearning. PAPER is BackdoorBench's default."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

SPACE = {
    "norm": FloatDistribution(0.02, 0.5, log=True),
    "lr": FloatDistribution(1e-5, 3e-3, log=True),
    "rounds": IntDistribution(1, 100, log=True),
    "shared_weight": FloatDistribution(0.01, 10.0, log=True),
}
PAPER = {
    "norm": 0.2,
    "attack_steps": 5,
    "attack_lr": 0.2,
    "beta1": 0.01,
    "beta2": 1.0,
    "lr": 1e-4,
    "rounds": 100,
    "shared_weight": 1.0,
}
