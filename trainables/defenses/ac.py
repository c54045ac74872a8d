"""Activation clustering (Chen et al. 2018, arXiv:1811.03728)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from trainables.defenses.base import register
from trainables.defenses.retraining import Finding, RetrainingDefense, members, principal_directions
from trainables.settings import Count, Within

# Below this a class has no two groups to speak of.
MIN_CLASS = 4
ROWS = 1024  # of a distance matrix at a time


@register("ac")
@dataclass(frozen=True)
class ActivationClustering(RetrainingDefense):
    """Split the features of every class in two; where a rule calls one part poison, drop it and train anew.

    Clustering is over the whole class, on features without augmentation. (Public code clusters per mini-batch, where
    the names of the clusters mean nothing from one batch to the next, and removes nearly random samples.) With
    ``smaller`` a clean model loses the smaller part of every class too; the other rules can abstain. All rules fail by
    design where poison is no minority of its class: at poison rate 0.1 and ten classes it is half of it.

    Args:
        nb_dims: dimensions that the features of a class are reduced to, >= 1 (fewer where it spans fewer).
        reducer: ``pca``: principal components; ``ica``: independent ones. Independent components are the principal
            ones scaled to unit variance and rotated, and neither 2-means nor the silhouette notices a rotation.
        decision: what is dropped of each class: ``smaller``: always its smaller cluster; ``relative_size``: that, if
            its share is below ``size_threshold``; ``silhouette``: if, as well, the clusters' mean silhouette is above
            ``silhouette_threshold``; ``distance``: the cluster whose median lies closer to the median of another class
            than to that of its own (in the unreduced features); the smaller one, where it holds for both.
        size_threshold: share of its class below which the smaller cluster is suspicious, in [0, 0.5].
        silhouette_threshold: mean silhouette above which the clusters count as two groups, in [-1, 1].
    """

    matters_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "size_threshold": {"decision": "relative_size"},
        "silhouette_threshold": {"decision": "silhouette", "size_threshold": 0.5},
    }

    nb_dims: Count = 10
    reducer: Literal["pca", "ica"] = "pca"
    decision: Literal["smaller", "relative_size", "silhouette", "distance"] = "relative_size"
    size_threshold: Annotated[float, Within("[0, 0.5]")] = 0.35
    silhouette_threshold: Annotated[float, Within("[-1, 1]")] = 0.1

    def find(self, features: dict[str, Tensor], labels: Tensor) -> Finding:
        points = features["stage4_pooled"].double()
        classes = members(labels)
        medians = torch.stack([points[indices].median(0).values for _, indices in classes])
        scores = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
        removed = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        flagged = list[int]()
        for position, (label, indices) in enumerate(classes):
            if len(indices) < MIN_CLASS:
                continue
            reduced = self.reduce(points[indices])
            small = two_means(reduced)
            scores[indices] = lean(reduced, small)
            drop = self.decide(points[indices], reduced, small, medians, position)
            if drop is not None:
                removed[indices[drop]] = True
                flagged.append(label)
        return Finding(scores, removed, tuple(flagged))

    def reduce(self, points: Tensor) -> Tensor:
        """The points of a class, (N, D), in at most ``nb_dims`` dimensions: (N, R)."""
        directions, spread = principal_directions(points, self.nb_dims)
        components = (points - points.mean(0)) @ directions
        return components / spread if self.reducer == "ica" else components

    def decide(self, points: Tensor, reduced: Tensor, small: Tensor, medians: Tensor, own: int) -> Tensor | None:
        """Which samples of a class are dropped, bool (N,); None for none.

        Args:
            points: features of the class, (N, D).
            reduced: the same, reduced.
            small: membership of the smaller cluster, bool (N,).
            medians: of all classes' features, (K, D).
            own: position of this class among them.
        """
        if not bool(small.any()):
            return None
        share = float(small.double().mean())
        match self.decision:
            case "smaller":
                return small
            case "relative_size":
                return small if share < self.size_threshold else None
            case "silhouette":
                if share < self.size_threshold and silhouette(reduced, small) > self.silhouette_threshold:
                    return small
                return None
            case "distance":
                for cluster in (small, ~small):
                    distances = torch.linalg.vector_norm(medians - points[cluster].median(0).values, dim=1)
                    if int(distances.argmin()) != own:
                        return cluster
                return None


def two_means(points: Tensor) -> Tensor:
    """2-means of points (N, R): membership of the smaller cluster, bool (N,); all False where all points are equal.

    Deterministic and independent of the order of the points: Lloyd's iterations start from the split at the mean along
    each coordinate in turn (the principal axes, here), and the tightest result counts. Of two clusters of equal size
    the tighter one is called the smaller.
    """
    above = points.mean(0)[:, None] < points.T  # (R, N): one start per coordinate
    above = above[above.any(1)]
    if len(above) == 0:
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for _ in range(300):
        weight = torch.stack([above, ~above], 1).to(points)
        centres = weight @ points / weight.sum(2, keepdim=True).clamp(min=1.0)
        distances = torch.cdist(points, centres.flatten(0, 1)).square().T.unflatten(0, (len(above), 2))
        moved = distances[:, 0] < distances[:, 1]
        if torch.equal(moved, above):
            break
        above = moved
    within = torch.where(above, distances[:, 0], distances[:, 1])
    best = int(within.sum(1).argmin())
    one: Tensor = above[best]
    spread = within[best]
    other = one.logical_not()
    sizes = int(one.sum()), int(other.sum())
    if sizes[0] == sizes[1]:
        return one if float(spread[one].sum()) <= float(spread[other].sum()) else other
    return one if sizes[0] < sizes[1] else other


def lean(points: Tensor, small: Tensor) -> Tensor:
    """How much nearer each point is to the centre of the smaller cluster than to the other's: (N,), in [-1, 1]."""
    if not bool(small.any()):
        return torch.zeros(len(points), dtype=points.dtype, device=points.device)
    near = torch.linalg.vector_norm(points - points[small].mean(0), dim=1)
    far = torch.linalg.vector_norm(points - points[~small].mean(0), dim=1)
    margin: Tensor = (far - near) / torch.maximum(far, near).clamp(min=torch.finfo(points.dtype).tiny)
    return margin


def silhouette(points: Tensor, small: Tensor) -> float:
    """Mean silhouette (Rousseeuw 1987) of two clusters, in [-1, 1]; a cluster of one counts 0."""
    values = []
    sizes = torch.stack([small.sum(), (~small).sum()]).to(points)
    for rows, mine in zip(points.split(ROWS), small.split(ROWS), strict=True):
        distances = torch.cdist(rows, points)
        sums = torch.stack([distances[:, small].sum(1), distances[:, ~small].sum(1)])
        own = torch.where(mine, 0, 1)
        place = torch.arange(len(rows), device=points.device)
        inside = sums[own, place] / (sizes[own] - 1).clamp(min=1)
        outside = sums[1 - own, place] / sizes[1 - own]
        value = (outside - inside) / torch.maximum(inside, outside).clamp(min=torch.finfo(points.dtype).tiny)
        values.append(torch.where(sizes[own] > 1, value, 0.0))
    return float(torch.cat(values).mean())
