"""Feature-shift tuning. PAPER is the paper's setting (arXiv:2310.01875), batches of 128 as in its code."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "alpha": FloatDistribution(1e-4, 1.0, log=True),
    "lr": FloatDistribution(1e-4, 0.2, log=True),
    "steps": steps(),
    "reinit": CategoricalDistribution([True, False]),
}
PAPER = {
    "alpha": 0.2,
    "lr": 0.01,
    "steps": published_steps(epochs=10, images=1000, batch_size=128),
    "reinit": True,
    "fix_norm": True,
    "schedule": "cosine",
    "momentum": 0.9,
    "weight_decay": 0.0,
    "batch_size": 128,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {"alpha": 1e-3, "lr": 1e-3, "steps": published_steps(epochs=15, images=2500, batch_size=128)},
    "gtsrb": {"alpha": 0.1, "steps": published_steps(epochs=15, images=784, batch_size=128)},
    "tiny_imagenet": {"alpha": 1e-3, "lr": 1e-3, "steps": published_steps(epochs=15, images=5000, batch_size=128)},
}
