"""What can be said of a repaired model without knowing any trigger: rates, distances, losses, warnings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.choice.base import Choice
from trainables.evaluation.metrics import sign_test, wilson
from trainables.training.loop import History
from trainables.training.movement import WINDOW, Movement

SIGNIFICANT = 0.05  # of a test whether accuracy fell
UNKNOWN = (
    "the attack success rate: nobody has the trigger, if there is one, so nothing here says whether a backdoor was "
    "there or is gone",
    "accuracy on other images: the held-out part comes from the same source as the rest, and the model may have been "
    "trained on all of them",
)


def measured(labels: Tensor, before: Tensor, after: Tensor) -> dict[str, Any]:
    """Rates on the held-out part, with 95 % Wilson intervals."""
    right, still, n = before == labels, after == labels, len(labels)

    def rate(hits: Tensor) -> dict[str, Any]:
        count = int(hits.sum())
        return {"rate": count / n, "count": count, "of": n, "interval": [round(end, 4) for end in wilson(count, n)]}

    return {
        "clean_accuracy_before": rate(right),
        "clean_accuracy_after": rate(still),
        "lost": int((right & ~still).sum()),
        "won": int((~right & still).sum()),
        "agreement": rate(before == after),
    }


def moved(found: Movement, history: History) -> dict[str, Any]:
    """How far weights and training loss went, as rows of a study say it (`training.movement`).

    The loss: of the first batch, before any step; the highest and last mean over a few steps; what the highest is above
    the first.
    """
    losses = torch.tensor(history.loss, dtype=torch.float64)
    width = min(WINDOW, len(losses))
    means = losses.unfold(0, width, 1).mean(1) if width else losses
    return {
        "moved": found.moved,
        "displacement": {"distance": found.displacement, "relative": found.displacement_share},
        "loss": {
            "trained": bool(width),
            **({"first": float(losses[0]), "highest": float(means.max()), "last": float(means[-1])} if width else {}),
            **({"rise": found.loss_rise} if width else {}),
        },
    }


def chosen(choice: Choice, seconds: float) -> dict[str, Any]:
    """How the settings were chosen: the rule, what it tried, why it chose so, and what all of that took.

    Args:
        seconds: of choosing.
    """
    return {
        "rule": choice.rule,
        "candidate": None if choice.candidate is None else choice.candidate.label,
        "reasons": list(choice.reasons),
        "planted": json_able({"planted": choice.planted})["planted"],
        "tried": json_able({"table": choice.table})["table"],
        "work": dataclasses.asdict(choice.work),
        "seconds": round(seconds, 2),
    }


def warnings_of(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must not overlook."""
    found = []
    if facts["status"] == "abstained":
        found.append("the defense found nothing to repair and left the model as it was")
    elif facts["moved"] is False:
        rise = facts["loss"].get("rise")
        rose = "" if rise is None else f" and its loss {f'rose by {rise:.3f} at most' if rise > 0 else 'never rose'}"
        found.append(
            f"the repair hardly moved the model: the weights went {facts['displacement']['relative']:.2g} of their "
            f"length{rose}; a backdoor, if there is one, is most likely still there; more steps or a higher rate move "
            "more"
        )
    lost, won = facts["lost"], facts["won"]
    if won < lost and (p := sign_test(lost, won)) < SIGNIFICANT:
        found.append(
            f"clean accuracy fell by more than chance explains: {lost} held-out images were lost and {won} won "
            f"(p = {p:.2g}, McNemar's exact test)"
        )
    return found


def json_able(notes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(notes, default=str)))
