"""Anti-backdoor learning. PAPER is what BackdoorBench runs on 32-pixel sets (its unlearning rate is fixed in code)."""

from __future__ import annotations

from optuna.distributions import FloatDistribution, IntDistribution

SPACE = {
    "isolation_ratio": FloatDistribution(0.002, 0.1, log=True),
    "gamma": FloatDistribution(0.0, 1.5),
    "tuning_epochs": IntDistribution(5, 40),
    "lr": FloatDistribution(1e-3, 0.2, log=True),
    "unlearn_lr": FloatDistribution(1e-5, 5e-3, log=True),
    "unlearning_epochs": IntDistribution(1, 30),
}
PAPER = {
    "isolation_ratio": 0.01,
    "gamma": 0.5,
    "tuning_epochs": 20,
    "finetuning_epochs": 60,
    "unlearning_epochs": 20,
    "gate_on": "batch",
    "lr": 0.01,
    "unlearn_lr": 1e-4,
    "grad_clip": 10.0,
    "bn_mode": "train",
    "batch_size": 256,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}
PAPER_FOR: dict[str, dict[str, object]] = {
    "cifar100": {},
    "gtsrb": {},
    "tiny_imagenet": {"tuning_epochs": 40, "finetuning_epochs": 120, "unlearning_epochs": 4},
}
