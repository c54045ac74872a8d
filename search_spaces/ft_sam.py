"""Sharpness-aware fine-tuning. PAPER is BackdoorBench's default, with a cosine over the actual steps."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "rho": FloatDistribution(0.05, 20.0, log=True),
    "lr": FloatDistribution(1e-4, 0.2, log=True),
    "steps": steps(),
    "smoothing": CategoricalDistribution([0.0, 0.1]),
    "adaptive": CategoricalDistribution([True, False]),
}
PAPER = {
    "rho": 2.0,
    "adaptive": True,
    "lr": 0.01,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "schedule": "cosine",
    "smoothing": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "augment": True,
}
# There is none for CIFAR-100.
PAPER_FOR: dict[str, dict[str, object]] = {
    "gtsrb": {"rho": 8.0, "smoothing": 0.0, "steps": published_steps(epochs=50, images=1960, batch_size=256)},
    "tiny_imagenet": {"rho": 8.0, "smoothing": 0.0, "steps": published_steps(epochs=100, images=5000, batch_size=256)},
}
