"""Activation clustering. PAPER is BackdoorBench's default: 10 components, the smaller cluster of every class goes."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.space import Space

DETECTOR_SPACE: dict[str, BaseDistribution] = {
    "nb_dims": IntDistribution(2, 50, log=True),
    "reducer": CategoricalDistribution(["pca", "ica"]),
    "decision": CategoricalDistribution(["smaller", "relative_size", "silhouette", "distance"]),
    "size_threshold": FloatDistribution(0.05, 0.5),
    "silhouette_threshold": FloatDistribution(0.0, 0.4),
}
# What decides which images are left out: tuned first, without any training (see `Space.split`).
DETECTOR = tuple(DETECTOR_SPACE)
SPACE = {**DETECTOR_SPACE, "lr": FloatDistribution(1e-3, 0.2, log=True)}
PAPER = {
    "nb_dims": 10,
    "reducer": "pca",
    "decision": "smaller",
    "size_threshold": 0.35,
    "silhouette_threshold": 0.1,
    "lr": 0.01,
    "epochs": 100,
    "batch_size": 256,
    "momentum": 0.9,
    "weight_decay": 5e-4,
}
# On Tiny ImageNet BackdoorBench's rate falls where the loss stands still; here it falls along a cosine.
PAPER_FOR: dict[str, dict[str, object]] = {"cifar100": {}, "gtsrb": {}, "tiny_imagenet": {"epochs": 200}}

# The detector alone, each setting of it with its training, at one rate: those that keep the same samples share one.
VARIANTS = {"detector": Space(DETECTOR_SPACE, PAPER)}
