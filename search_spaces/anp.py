"""Adversarial neuron pruning. PAPER is BackdoorBench's default, closed channels as in the paper (masks up to 0.2)."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

from search_spaces.steps import LONGEST

SPACE = {
    "eps": FloatDistribution(0.1, 1.0),
    "alpha": FloatDistribution(0.0, 1.0),
    "lr": FloatDistribution(1e-3, 0.5, log=True),
    "iterations": IntDistribution(200, LONGEST, log=True),
    "threshold": FloatDistribution(0.05, 0.9),
    "acc_tol": FloatDistribution(0.005, 0.15),
}
PAPER = {
    "eps": 0.4,
    "steps": 1,
    "alpha": 0.2,
    "lr": 0.01,
    "momentum": 0.9,
    "iterations": 2000,
    "clip_noise": False,
    "threshold": 0.2,
    "acc_tol": 0.1,
    "tolerance": "relative",
    "bn_mode": "train",
    "batch_size": 256,
    "augment": True,
}
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}, "tiny_imagenet": {}}
