"""Neural Cleanse. PAPER is BackdoorBench's default (the paper's own tau is 0.99, its unlearning one short epoch)."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from search_spaces.space import Space

INVERSION: dict[str, BaseDistribution] = {
    "init_cost": FloatDistribution(1e-4, 1e-1, log=True),
    "tau": FloatDistribution(0.9, 0.995),
}
UNLEARNING: dict[str, BaseDistribution] = {
    "mad_threshold": FloatDistribution(1.5, 4.0),
    "unlearn_ratio": FloatDistribution(0.05, 0.5),
    "lr": FloatDistribution(1e-4, 0.1, log=True),
    "epochs": IntDistribution(1, 100, log=True),
}
SPACE = {**INVERSION, **UNLEARNING}
PAPER = {
    "init_cost": 1e-3,
    "tau": 0.98,
    "mask_epochs": 80,
    "mad_threshold": 2.0,
    "unlearn_ratio": 0.2,
    "lr": 0.01,
    "epochs": 100,
}

# Leaves the inversion, nearly all of the cost, at its default: the triggers are then found once for all trials.
VARIANTS = {"unlearning": Space(UNLEARNING, PAPER)}
