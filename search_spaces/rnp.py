"""Reconstructive neuron pruning. PAPER has the published rates, with the threshold taken from validation data.

``alpha`` is left out: it is a factor on ``recover_lr``.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution

SPACE = {
    "unlearn_lr": FloatDistribution(1e-3, 0.1, log=True),
    "clean_threshold": FloatDistribution(0.05, 0.5),
    "recover_lr": FloatDistribution(0.01, 1.0, log=True),
    "acc_tol": FloatDistribution(0.005, 0.15),
}
PAPER = {"unlearn_lr": 0.01, "clean_threshold": 0.2, "recover_lr": 0.2, "acc_tol": 0.1}
