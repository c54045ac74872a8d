"""Channel Lipschitz pruning: in truth one parameter. PAPER is the value for all published sets but one."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

SPACE = {
    "u": FloatDistribution(0.5, 6.0),
    "pair_mode": CategoricalDistribution(["skip", "last_conv"]),
}
PAPER = {"u": 3.0, "pair_mode": "skip"}
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}, "tiny_imagenet": {"u": 5.0}}
