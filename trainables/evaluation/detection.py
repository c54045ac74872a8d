"""How well a detecting defense found what the attacker did. Known to the evaluator alone: no defense imports this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import Kind
from trainables.data.classes import class_members
from trainables.defenses.base import Repair


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Chance that a positive sample has a higher score than a negative one (ties count half); None without either.

    Args:
        scores: (N,), higher is more suspicious.
        positive: bool, (N,).
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    _, place, count = scores.double().unique(return_inverse=True, return_counts=True)
    # Mean rank (from 1) of each distinct score.
    ranks = (count.cumsum(0) - (count - 1) / 2.0)[place]
    above = float(ranks[positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def average_precision(scores: Tensor, positive: Tensor) -> float | None:
    """Area under the precision-recall steps, tied scores taken together; None without a positive sample."""
    positives = int(positive.sum())
    if positives == 0:
        return None
    levels, place = scores.double().unique(return_inverse=True)
    found = torch.zeros(len(levels), dtype=torch.float64, device=scores.device)
    seen = found.clone()
    found.index_add_(0, place, positive.double())
    seen.index_add_(0, place, torch.ones_like(positive, dtype=torch.float64))
    found, seen = found.flip(0), seen.flip(0)
    precision = found.cumsum(0) / seen.cumsum(0)
    return float((precision * found).sum()) / positives


def detection_columns(repair: Repair, kinds: Tensor, targets: Tensor, labels: Tensor) -> dict[str, Any]:
    """Columns of a row on what a repair removed, scored and flagged; empty for a defense that detects nothing.

    Poison is positive and clean is negative. Samples that carry a trigger under their true label (`Kind.CROSS`) are
    neither: finding them is no merit and no harm. Only ``detection_removed`` and ``detection_precision``, the share of
    poison among all that was removed, count them.

    Over all classes a score is judged by telling classes apart, which needs no detector: poison lies in one of them.
    ``detection_auroc_target`` and ``detection_auprc_target`` ask whether it tells poison from clean images *within* the
    target class. And who removes a tenth of every class finds no more of the poison than that, however good the scores:
    a TPR is read against the most that any detector could reach who removes as many images in all
    (``detection_ceiling_share``), or as many of every class (``detection_ceiling_classes``).

    Args:
        repair: as the defense returned it.
        kinds: of every training sample, uint8 (N,), values of `Kind`.
        targets: labels the attacker wants, int64, any number of each; empty for a control, where every flag is false.
        labels: of every training sample as released, int64 (N,).

    Returns:
        ``detection_removed`` (share of the training set), ``detection_tpr``, ``detection_fpr``,
        ``detection_precision``, ``detection_ceiling_share``, ``detection_ceiling_classes``,
        ``detection_removed_target`` (share of the target class); ``detection_auroc``, ``detection_auprc`` of the
        scores, ``detection_auroc_target``, ``detection_auprc_target`` (of several target classes: the mean over the
        poisoned samples); ``flagged_classes``, ``target_flagged`` (every class that the attacker wants is among them),
        ``false_classes`` (how many others). Fractions are in [0, 1], None where there is nothing to divide by: of the
        target class where no sample of it is poisoned.
    """
    found: dict[str, Any] = {}
    poison, clean = kinds == Kind.POISON, kinds == Kind.CLEAN
    labels = labels.cpu()
    poisoned_classes = sorted(set(targets.unique().tolist()) & set(labels[poison].unique().tolist()))
    in_target = torch.isin(labels, torch.tensor(poisoned_classes, dtype=labels.dtype))
    if repair.removed is not None:
        removed = torch.zeros(len(kinds), dtype=torch.bool)
        removed[repair.removed.cpu()] = True
        found["detection_removed"] = _share(removed, torch.ones_like(removed))
        found["detection_tpr"] = _share(removed, poison)
        found["detection_fpr"] = _share(removed, clean)
        found["detection_precision"] = _share(poison, removed)
        count = int(poison.sum())
        classes = int(labels.max()) + 1 if len(labels) else 0
        removed_of, poison_of = (torch.bincount(labels[mask], minlength=classes) for mask in (removed, poison))
        held = int(torch.minimum(removed_of, poison_of).sum())
        found["detection_ceiling_share"] = min(int(removed.sum()), count) / count if count else None
        found["detection_ceiling_classes"] = held / count if count else None
        found["detection_removed_target"] = _share(removed, in_target)
    if repair.scores is not None:
        judged, samples = poison | clean, class_members(labels)
        scores = repair.scores.cpu()
        found["detection_auroc"] = auroc(scores[judged], poison[judged])
        found["detection_auprc"] = average_precision(scores[judged], poison[judged])
        for name, measure in (("auroc", auroc), ("auprc", average_precision)):
            within = [
                (measure(scores[own], poison[own]), int(poison[own].sum()))
                for own in (of_class[judged[of_class]] for of_class in (samples[label] for label in poisoned_classes))
            ]
            known = [(value, weight) for value, weight in within if value is not None]
            total = sum(weight for _, weight in known)
            found[f"detection_{name}_target"] = sum(v * w for v, w in known) / total if total else None
    if repair.flagged_classes is not None:
        wanted = set(targets.unique().tolist())
        flagged = set(repair.flagged_classes)
        found["flagged_classes"] = sorted(flagged)
        found["target_flagged"] = wanted <= flagged if wanted else None
        found["false_classes"] = len(flagged - wanted)
    return found


def _share(of: Tensor, among: Tensor) -> float | None:
    total = int(among.sum())
    return int((of & among).sum()) / total if total else None
