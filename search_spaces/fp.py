"""Fine-pruning. PAPER is BackdoorBench's default; the tolerance decides how much is pruned, the rate what survives.

On Tiny ImageNet BackdoorBench's rate falls where the loss stands still; here it falls along a cosine.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.steps import steps
from trainables.defenses.base import published_steps

SPACE = {
    "acc_tol": FloatDistribution(0.005, 0.2),
    "layer": CategoricalDistribution(["last_conv", "classifier_in"]),
    "lr": FloatDistribution(1e-4, 0.1, log=True),
    "steps": steps(),
}
PAPER = {
    "acc_tol": 0.1,
    "tolerance": "relative",
    "layer": "classifier_in",
    "prune_steps": 100,
    "lr": 0.01,
    "steps": published_steps(epochs=100, images=2500, batch_size=256),
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {"steps": published_steps(epochs=100, images=1960, batch_size=256)},
    "tiny_imagenet": {"steps": published_steps(epochs=200, images=5000, batch_size=256)},
}
