"""Adversarial weight masking. PAPER is the published default, its bound on delta's L1 norm taken per value.

Delta reaches the bound only where ``inner_lr`` is large.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

# Five passes; the public loop leaves out the last, smaller batch of its 2,000 images.
ROUND = published_steps(epochs=5, images=2000 // 128 * 128, batch_size=128)

SPACE = {
    "lr": FloatDistribution(1e-3, 0.1, log=True),
    "steps": steps(),
    "round_steps": IntDistribution(5, 300, log=True),
    "inner_steps": IntDistribution(5, 300, log=True),
    "alpha": FloatDistribution(0.2, 1.0),
    "gamma": FloatDistribution(1e-9, 1e-5, log=True),
    "inner_lr": FloatDistribution(1.0, 1000.0, log=True),
    "bound": FloatDistribution(0.03, 1.0, log=True),
}
PAPER = {
    "lr": 0.01,
    "steps": 20 * ROUND,
    "round_steps": ROUND,
    "inner_steps": ROUND,
    "alpha": 0.9,
    "gamma": 1e-8,
    "bound": 1000 / 3072,
    "inner_lr": 10.0,
    "batch_size": 128,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {}
