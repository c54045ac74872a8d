"""Implicit unlearning. PAPER is the authors' code (github.com/YiZeng623/I-BAU): five rounds of 50 and 50 steps.

How far delta goes is a matter of the rate and the steps of its ascent and of its bound, so all three are searched.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

PASS = published_steps(epochs=1, images=5000, batch_size=100)

SPACE = {
    "lr": FloatDistribution(1e-5, 3e-3, log=True),
    "steps": steps(),
    "round_steps": IntDistribution(5, 200, log=True),
    "inner_steps": IntDistribution(1, 200, log=True),
    "inner_lr": FloatDistribution(0.1, 100.0, log=True),
    "fixed_point_iterations": IntDistribution(1, 10),
    "norm_bound": CategoricalDistribution([None, 1.0, 3.0, 10.0, 30.0]),
    "patch_portion": CategoricalDistribution([0.01, 0.1, 0.5, 1.0]),
}
PAPER = {
    "steps": 5 * PASS,
    "round_steps": PASS,
    "inner_steps": PASS,
    "fixed_point_iterations": 5,
    "lr": 1e-3,
    "inner_lr": 10.0,
    "norm_bound": None,
    "patch_portion": 0.01,
    "batch_size": 100,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {"gtsrb": {}}
