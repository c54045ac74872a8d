"""Neural mask fine-tuning. PAPER is the setting of its authors' code for CIFAR-10 (arXiv:2407.10052)."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.steps import LONGEST

SPACE = {
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "iterations": IntDistribution(100, LONGEST, log=True),
    "eta": FloatDistribution(1e-5, 1.0, log=True),
    "floor": FloatDistribution(0.3, 1.0),
    "falloff": FloatDistribution(0.0, 1.0),
    "mixup": FloatDistribution(0.0, 4.0),
}
PAPER = {
    "lr": 0.05,
    "decay": 0.4,
    "iterations": 1000,
    "eta": 1e-3,
    "floor": 0.8,
    "falloff": 0.5,
    "mixup": 1.0,
    "momentum": 0.95,
    "bn_mode": "train",
    "batch_size": 128,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {}
