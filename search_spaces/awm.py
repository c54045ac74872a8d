"""Adversarial weight masking. PAPER is the published default, its bound on delta's L1 norm taken per value.

Delta reaches the bound only where ``inner_lr`` is large.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

SPACE = {
    "lr": FloatDistribution(1e-3, 0.1, log=True),
    "rounds": IntDistribution(1, 40, log=True),
    "alpha": FloatDistribution(0.2, 1.0),
    "gamma": FloatDistribution(1e-9, 1e-5, log=True),
    "inner_lr": FloatDistribution(1.0, 1000.0, log=True),
    "bound": FloatDistribution(0.03, 1.0, log=True),
}
PAPER = {"lr": 0.01, "rounds": 20, "epochs": 5, "alpha": 0.9, "gamma": 1e-8, "inner_lr": 10.0, "bound": 1000 / 3072}
