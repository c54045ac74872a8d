"""Whether a repair moved the model at all: how far its training loss rose, and how far its weights went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Steps whose mean loss is one point of the curve: a single batch of some tens of images is too noisy.
WINDOW = 5
# A repair that stays below both moved nothing. Measured, see docs/choosing.md: "A repair that moved nothing".
LOSS_RISE = 0.02
DISPLACEMENT_SHARE = 0.2
# Below this share of changed weights a method edited a part of the model (pruned, trained a head): there a small
# distance says nothing.
WHOLE_MODEL = 0.5
# So near is as good as the same model: one pruned channel of 512 is some ten times as far. A rate so low that most
# steps are lost to rounding changes few weights too, and is no edit.
THE_SAME = 1e-3


@dataclass(frozen=True)
class Movement:
    """What a repair did to a model, without a look at any test image.

    Args:
        loss_rise: the largest mean training loss over 5 steps in a row, less the loss of the first batch, which the
            model gave before any step; in nats, of the method's own loss. None: it trained nothing. It may be negative.
        displacement: Euclidean distance of all parameters from where they were.
        displacement_share: that distance as a share of the parameters' own length before; may exceed 1.
        changed: share of the parameters' values that are not what they were, in [0, 1].
    """

    loss_rise: float | None
    displacement: float
    displacement_share: float
    changed: float

    @property
    def moved(self) -> bool | None:
        """False: the loss never rose and the weights are near where they were, so a backdoor can hardly have gone.

        True says that something happened, not that a backdoor is gone. None where the method edits a part of the model.
        """
        if self.displacement_share < THE_SAME:
            return False
        if self.changed < WHOLE_MODEL:
            return None
        rose = self.loss_rise is not None and self.loss_rise >= LOSS_RISE
        return rose or self.displacement_share >= DISPLACEMENT_SHARE


def loss_rise(losses: Sequence[float]) -> float | None:
    """How far a training loss rose above that of its first batch, see `Movement`; None of no losses."""
    if not losses:
        return None
    width = min(WINDOW, len(losses))
    means = (math.fsum(losses[start : start + width]) / width for start in range(len(losses) - width + 1))
    return max(means) - losses[0]


@torch.no_grad()
def movement(before: Mapping[str, Tensor], model: nn.Module, losses: Sequence[float] = ()) -> Movement:
    """What lies between the parameters ``before``, by name, and those of ``model``.

    A parameter that one of the two has not, or in another shape, counts as moved by the length of both.

    Args:
        before: `parameters_of` the model as it came.
        losses: of every training step, `History.loss`.
    """
    now = parameters_of(model)
    squares = changed = total = 0.0
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if old is not None and new is not None and old.shape == new.shape:
            step = new.double() - old.to(new.device).double()
            squares += float(step.square().sum())
            changed += int((step != 0).sum())
        else:
            squares += sum(float(one.double().square().sum()) for one in (old, new) if one is not None)
            changed += new.numel() if new is not None else 0
        total += new.numel() if new is not None else 0
    length = math.sqrt(math.fsum(float(one.double().square().sum()) for one in before.values()))
    distance = math.sqrt(squares)
    share = distance / length if length else math.inf if distance else 0.0
    return Movement(loss_rise(losses), distance, share, changed / total if total else 0.0)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
