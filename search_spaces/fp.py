"""Fine-pruning. PAPER is BackdoorBench's default; the tolerance decides how much is pruned, the rate what survives."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

SPACE = {
    "acc_tol": FloatDistribution(0.005, 0.2),
    "layer": CategoricalDistribution(["last_conv", "classifier_in"]),
    "lr": FloatDistribution(1e-4, 0.1, log=True),
    "epochs": IntDistribution(1, 100, log=True),
}
PAPER = {"acc_tol": 0.1, "layer": "classifier_in", "lr": 0.01, "epochs": 100}
