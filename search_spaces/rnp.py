"""Reconstructive neuron pruning. PAPER has the published rates and threshold, and a tolerance for the validation set.

``alpha`` is left out: it is a factor on ``recover_lr``.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "unlearn_lr": FloatDistribution(1e-3, 0.1, log=True),
    "clean_threshold": FloatDistribution(0.05, 0.5),
    "recover_lr": FloatDistribution(0.01, 1.0, log=True),
    "recover_steps": steps(),
    "threshold": FloatDistribution(0.05, 0.9),
    "acc_tol": FloatDistribution(0.005, 0.15),
}
PAPER = {
    "unlearn_lr": 0.01,
    "unlearn_steps": published_steps(epochs=20, images=500, batch_size=128),
    "clean_threshold": 0.2,
    "grad_clip": 20.0,
    "recover_lr": 0.2,
    "recover_steps": published_steps(epochs=20, images=500, batch_size=128),
    "alpha": 0.2,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "threshold": 0.7,
    "acc_tol": 0.1,
    "tolerance": "relative",
    "bn_mode": "train",
    "batch_size": 128,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {}
