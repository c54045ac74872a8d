"""Conventional fine-tuning. PAPER is BackdoorBench's default; the rate dominates everything else.

On Tiny ImageNet BackdoorBench's rate falls where the loss stands still; here it falls along a cosine.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "lr": FloatDistribution(1e-5, 1.0, log=True),
    "steps": steps(),
    "momentum": CategoricalDistribution([0.0, 0.9]),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "scope": CategoricalDistribution(["all", "classifier", "last_block+classifier", "bn_only"]),
}
PAPER = {
    "lr": 0.01,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "schedule": "cosine",
    "scope": "all",
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "optimizer": "sgd",
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {"steps": published_steps(epochs=100, images=1960, batch_size=256)},
    "tiny_imagenet": {"steps": published_steps(epochs=200, images=5000, batch_size=256)},
}
