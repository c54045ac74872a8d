"""Spectral signatures (Tran, Li & Madry 2018, arXiv:1811.00636)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from trainables.defenses.base import register
from trainables.defenses.retraining import Finding, RetrainingDefense, members, principal_directions
from trainables.settings import Within


@register("spectral")
@dataclass(frozen=True)
class SpectralSignatures(RetrainingDefense):
    """In every class, drop the samples that lie farthest along the direction of largest variance; train anew.

    A sample's score is <h - mu, v>^2 with the class mean mu of the features and the top right singular vector v of the
    *centred* features. (Projecting the uncentred ones, as public code does, ranks by the mean instead.) Unlike
    activation clustering it removes the same share whether or not a class looks attacked, so clean data are lost from
    every class, and with a removal of zero nothing is done.

    Args:
        remove_fraction: what is removed from every class, as a share of ``reference``, in [0, 0.5]: 1.5 times the
            poison rate that is *assumed*. At most half of a class goes. The paper assumes 5 % (0.075); BackdoorBench
            removes 15 %.
        reference: what that is a share of: ``class``: the class's own size (the paper); ``set``: the whole set's
            (backdoor-toolbox).
        feature_layer: where the features are taken: ``stage4_pooled``: the penultimate features; ``stage3_pooled``: the
            stage before, averaged.
    """

    remove_fraction: Annotated[float, Within("[0, 0.5]")] = 0.15
    reference: Literal["class", "set"] = "class"
    feature_layer: Literal["stage4_pooled", "stage3_pooled"] = "stage4_pooled"

    def count(self, class_size: int, set_size: int) -> int:
        """How many samples are removed from a class."""
        reference = class_size if self.reference == "class" else set_size
        # The hair undoes binary fractions: 0.29 * 100 is 28.999999999999996.
        return min(math.floor(self.remove_fraction * reference + 1e-9), class_size // 2)

    def find(self, features: dict[str, Tensor], labels: Tensor) -> Finding:
        points = features[self.feature_layer].double()
        scores = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        removed = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for _, indices in members(labels):
            scores[indices] = spectral_scores(points[indices])
            order = scores[indices].argsort(descending=True, stable=True)
            removed[indices[order[: self.count(len(indices), len(labels))]]] = True
        return Finding(scores, removed)


def spectral_scores(points: Tensor) -> Tensor:
    """Squared projections of the centred points, (N, D), on their top right singular vector: (N,), >= 0."""
    directions, _ = principal_directions(points, 1)
    return ((points - points.mean(0)) @ directions).square().sum(1)
