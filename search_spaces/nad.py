"""Neural attention distillation. PAPER is BackdoorBench's default: beta 500, 1000, 1000, ten epochs each."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "beta": FloatDistribution(10.0, 1e4, log=True),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
    "teacher_steps": IntDistribution(20, 2000, log=True),
    "steps": steps(),
    "p": CategoricalDistribution([1, 2, 4]),
}
PAPER = {
    "beta": 1000.0,
    "p": 2,
    "teacher_steps": published_steps(epochs=10, images=2500, batch_size=256),
    "steps": published_steps(epochs=10, images=2500, batch_size=256),
    "lr": 0.01,
    "schedule": "constant",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {
        "teacher_steps": published_steps(epochs=10, images=1960, batch_size=256),
        "steps": published_steps(epochs=10, images=1960, batch_size=256),
    },
}
