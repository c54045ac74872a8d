"""Neural Cleanse. PAPER is BackdoorBench's default (the paper's own tau is 0.99, its unlearning one short epoch).

On Tiny ImageNet BackdoorBench's rate falls where the loss stands still; here it falls along a cosine.
"""

from __future__ import annotations

from optuna.distributions import BaseDistribution, FloatDistribution

from search_spaces.space import Space
from search_spaces.steps import steps
from trainables.defenses.base import published_steps

INVERSION: dict[str, BaseDistribution] = {
    "init_cost": FloatDistribution(1e-4, 1e-1, log=True),
    "tau": FloatDistribution(0.9, 0.995),
}
UNLEARNING: dict[str, BaseDistribution] = {
    "mad_threshold": FloatDistribution(1.5, 4.0),
    "unlearn_ratio": FloatDistribution(0.05, 0.5),
    "lr": FloatDistribution(1e-4, 0.1, log=True),
    "steps": steps(),
}
SPACE = {**INVERSION, **UNLEARNING}
PAPER = {
    "init_cost": 1e-3,
    "tau": 0.98,
    "mask_steps": published_steps(epochs=80, images=2500, batch_size=256),
    "mask_lr": 0.1,
    "patience": 5,
    "stop_patience": 25,
    "mad_threshold": 2.0,
    "unlearn_ratio": 0.2,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "lr": 0.01,
    "batch_size": 256,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {
        "mask_steps": published_steps(epochs=80, images=1960, batch_size=256),
        "steps": published_steps(epochs=100, images=1960, batch_size=256),
    },
    "tiny_imagenet": {
        "mask_steps": published_steps(epochs=80, images=5000, batch_size=256),
        "steps": published_steps(epochs=200, images=5000, batch_size=256),
    },
}

# Leaves the inversion, nearly all of the cost, at its default: the triggers are then found once for all trials.
VARIANTS = {"unlearning": Space(UNLEARNING, PAPER)}
