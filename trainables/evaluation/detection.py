"""How well a detecting defense found what the attacker did. Known to the evaluator alone: no defense imports this."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.attacks.base import Kind
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


def detection_columns(repair: Repair, kinds: Tensor, targets: Tensor) -> dict[str, Any]:
    """Columns of a row on what a repair removed, scored and flagged; empty for a defense that detects nothing.

    Poison is positive and clean is negative. Samples that carry a trigger under their true label (`Kind.CROSS`) are
    neither: finding them is no merit and no harm. Only ``detection_removed`` and ``detection_precision``, the share of
    poison among all that was removed, count them.

    Args:
        repair: as the defense returned it.
        kinds: of every training sample, uint8 (N,), values of `Kind`.
        targets: labels the attacker wants, int64, any number of each; empty for a control, where every flag is false.

    Returns:
        ``detection_removed`` (share of the training set), ``detection_tpr``, ``detection_fpr``,
        ``detection_precision``; ``detection_auroc``, ``detection_auprc`` of the scores; ``flagged_classes``,
        ``target_flagged`` (every class that the attacker wants is among them), ``false_classes`` (how many others).
        Fractions are in [0, 1], None where there is nothing to divide by.
    """
    found: dict[str, Any] = {}
    poison, clean = kinds == Kind.POISON, kinds == Kind.CLEAN
    if repair.removed is not None:
        removed = torch.zeros(len(kinds), dtype=torch.bool)
        removed[repair.removed.cpu()] = True
        found["detection_removed"] = _share(removed, torch.ones_like(removed))
        found["detection_tpr"] = _share(removed, poison)
        found["detection_fpr"] = _share(removed, clean)
        found["detection_precision"] = _share(poison, removed)
    if repair.scores is not None:
        judged = poison | clean
        scores = repair.scores.cpu()[judged]
        found["detection_auroc"] = auroc(scores, poison[judged])
        found["detection_auprc"] = average_precision(scores, poison[judged])
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
