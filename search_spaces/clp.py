"""Channel Lipschitz pruning: in truth one parameter. PAPER is the value for CIFAR-10, CIFAR-100 and GTSRB."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

SPACE = {
    "u": FloatDistribution(0.5, 6.0),
    "pair_mode": CategoricalDistribution(["skip", "last_conv"]),
}
PAPER = {"u": 3.0, "pair_mode": "skip"}
