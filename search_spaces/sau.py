"""Shared adversarial unlearning. PAPER is BackdoorBench's default."""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "norm": FloatDistribution(0.02, 0.5, log=True),
    "lr": FloatDistribution(1e-5, 3e-3, log=True),
    "steps": steps(),
    "shared_weight": FloatDistribution(0.01, 10.0, log=True),
}
PAPER = {
    "norm": 0.2,
    "attack_steps": 5,
    "attack_lr": 0.2,
    "beta1": 0.01,
    "beta2": 1.0,
    "lr": 1e-4,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "shared_weight": 1.0,
    "batch_size": 256,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {"steps": published_steps(epochs=100, images=1960, batch_size=256)},
    "tiny_imagenet": {"steps": published_steps(epochs=20, images=5000, batch_size=256)},
}
