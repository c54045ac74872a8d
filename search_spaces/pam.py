"""Path-aware minimisation. PAPER is the setting of its authors' code for CIFAR-10 (arXiv:2410.09838), no triggers."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "rho": FloatDistribution(0.05, 5.0, log=True),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
    "steps": steps(),
    "momentum": CategoricalDistribution([0.0, 0.1, 0.9]),
}
PAPER = {
    "rho": 0.5,
    "rho_mode": "length",
    "lr": 0.01,
    "steps": published_steps(epochs=90, images=2500, batch_size=128),
    "schedule": "constant",
    "bn_at": "moved",
    "momentum": 0.1,
    "weight_decay": 0.0,
    "batch_size": 128,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {}
