"""Distance-driven detoxification. PAPER is the setting of its authors' code for CIFAR-10 (arXiv:2411.09585)."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    # Holds both published values, 0.5 and 10.
    "loss_weight": FloatDistribution(0.05, 50.0, log=True),
    "slack": FloatDistribution(0.0, 0.5),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
    "steps": steps(),
    "init": CategoricalDistribution(["random", "noise", "far", "near"]),
}
PAPER = {
    "loss_weight": 0.5,
    "slack": 0.1,
    "lr": 0.01,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "init": "random",
    "moved": "classifier",
    "hinge": "sample",
    "schedule": "cosine",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 256,
    "bn_mode": "train",
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {}
