"""What can be said of a repaired model without knowing any trigger: rates, distances, losses, warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainables.evaluation.metrics import wilson
from trainables.training.loop import History

# A loss rose if its mean over so many steps came this far above where it was at any time before (in nats per image):
# more than batches alone make of it. Not above its beginning: a model that never saw augmented images begins high and
# falls.
RISING_STEPS, RISE = 5, 0.25
# Less of the weights' length than this is rounding and weight decay, not forgetting.
DISPLACEMENT_NEAR_NONE = 1e-3

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


@torch.no_grad()
def displacement(model: nn.Module, then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, float]:
    """Euclidean distance of all parameters, and in units of their length before."""
    names = [name for name, _ in model.named_parameters()]
    moved = sum(float((now[name].double() - then[name].double()).square().sum()) for name in names) ** 0.5
    length = sum(float(then[name].double().square().sum()) for name in names) ** 0.5
    return {"distance": moved, "relative": moved / length if length > 0 else 0.0}


def loss_of(history: History) -> dict[str, Any]:
    """The loss of the first batch, before any step; the highest and last mean over five steps; the largest rise."""
    if len(history.loss) < RISING_STEPS:
        return {"trained": False}
    losses = torch.tensor(history.loss, dtype=torch.float64)
    means = torch.cat([losses[:1], losses.unfold(0, RISING_STEPS, 1).mean(1)])
    rise = float((means - means.cummin(0).values).max())
    return {
        "trained": True,
        "first": float(losses[0]),
        "highest": float(means[1:].max()),
        "last": float(means[-1]),
        "rise": rise,
        "rose": rise > RISE,
    }


def warnings_of(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must not overlook."""
    found = []
    if facts["status"] == "abstained":
        found.append("the defense found nothing to repair and left the model as it was")
    elif facts["displacement"]["relative"] < DISPLACEMENT_NEAR_NONE:
        found.append(
            f"the repair hardly moved the weights ({facts['displacement']['relative']:.2g} of their length): a "
            "backdoor, if there is one, is most likely still whole"
        )
    if facts["loss"].get("rose") is False and facts["status"] == "ok":
        found.append(
            f"the training loss never rose (by {facts['loss']['rise']:.3f} at most): a repair that "
            "forgets nothing on its way may leave a backdoor whole; more steps or a higher rate move more"
        )
    if facts["clean_accuracy_after"]["interval"][1] < facts["clean_accuracy_before"]["interval"][0]:
        found.append("clean accuracy fell by more than chance explains: the intervals before and after lie apart")
    return found


def json_able(notes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(notes, default=str)))
