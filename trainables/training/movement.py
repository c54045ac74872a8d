"""Whether a repair moved the model: how far its training loss rose, and how far its weights went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Steps whose mean loss is one point of the curve: a single batch of some tens of images is too noisy.
WINDOW = 5
# Fine-tuning that stays below both hardly moved. Measured, see docs/choosing.md: "A repair that hardly moved".
LOSS_RISE = 0.02
DISPLACEMENT_SHARE = 0.15
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
        plain_loss: whether that loss is the one of the owned images and their labels alone, `Defense.plain_loss`.
        displacement: Euclidean distance of all parameters from where they were.
        displacement_share: that distance as a share of the parameters' own length before; may exceed 1.
        changed: share of the parameters' values that are not what they were, in [0, 1].
        statistics: whether a buffer changed: running statistics of batch normalisation.
    """

    loss_rise: float | None
    displacement: float
    displacement_share: float
    changed: float
    statistics: bool = False
    plain_loss: bool = True

    @property
    def moved(self) -> bool | None:
        """False: the loss never rose and the weights are near where they were, so a backdoor has seldom gone.

        True says that something happened, not that a backdoor is gone. None where this says nothing: the method edits
        a part of the model, or has a loss of its own, which may lead out of a backdoor without ever rising.
        """
        if self.displacement_share < THE_SAME:
            # Renewed statistics alone are an edit of a part as well: there are backdoors that live in them.
            return None if self.statistics and self.loss_rise is None else False
        if self.changed < WHOLE_MODEL:
            return None
        rose = self.loss_rise is not None and self.loss_rise >= LOSS_RISE
        if rose or self.displacement_share >= DISPLACEMENT_SHARE:
            return True
        return False if self.plain_loss else None


def loss_rise(losses: Sequence[float]) -> float | None:
    """How far a training loss rose above that of its first batch, see `Movement`; None of no losses."""
    if not losses:
        return None
    width = min(WINDOW, len(losses))
    means = (math.fsum(losses[start : start + width]) / width for start in range(len(losses) - width + 1))
    return max(means) - losses[0]


@dataclass(frozen=True)
class Snapshot:
    """A model's parameters and buffers as they were, by name."""

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """A copy of what ``model`` holds now."""
        parts = (model.named_parameters(), model.named_buffers())
        return cls(*({name: value.detach().clone() for name, value in part} for part in parts))


@torch.no_grad()
def movement(
    snapshot: Snapshot, model: nn.Module, losses: Sequence[float] = (), *, plain_loss: bool = True
) -> Movement:
    """What lies between a model as it came and ``model``.

    A parameter that one of the two has not, or in another shape, counts as moved by the length of both.

    Args:
        losses: of every training step, `History.loss`.
        plain_loss: what they are losses of, see `Movement`.
    """
    before, now = snapshot.parameters, {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())
    statistics = any(
        name not in buffers or not torch.equal(old, buffers[name].to(old.device))
        for name, old in snapshot.buffers.items()
    )
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
    return Movement(loss_rise(losses), distance, share, changed / total if total else 0.0, statistics, plain_loss)
