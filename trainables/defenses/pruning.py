"""What pruning defenses share: masks on BatchNorm channels, limits set on validation data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainables.data.images import DataError, ImageSet
from trainables.defenses.base import Repair
from trainables.models.build import ModelError
from trainables.models.channels import batch_norms
from trainables.models.classifier import Classifier
from trainables.settings import ShareBelowOne, check_settings
from trainables.training.loop import History
from trainables.training.trainer import Trainer

ToleranceUnit = Literal["relative", "points"]

# How many numbers of channels the validation set is asked about: as many over all of them, and once more between the
# largest that was admissible and the next.
LOOKS = 10


@dataclass(frozen=True)
class Tolerance:
    """How much validation accuracy pruning may cost.

    Accuracy moves in images: a tolerance above 0 but below one of them would be the same as none, whatever its value,
    so it counts as one.

    Args:
        acc_tol: largest drop, in [0, 1); above 0 it allows one image at least.
        unit: ``relative`` to the accuracy before (BackdoorBench), or ``points`` of accuracy (as a fraction).
        images: of the validation set, >= 1.
    """

    acc_tol: ShareBelowOne
    unit: ToleranceUnit
    images: int

    def __post_init__(self) -> None:
        check_settings(self, called={"unit": "tolerance"})

    def allows(self, accuracy: float, before: float) -> bool:
        """Whether ``accuracy`` is within the tolerance below ``before``."""
        return before - accuracy <= self.largest_drop(before) + 1e-9  # 0.9 - 0.8 is more than 0.1 in floating point

    def largest_drop(self, before: float) -> float:
        """The drop of accuracy that is allowed, as a fraction."""
        if self.acc_tol == 0.0:
            return 0.0
        return max(self.acc_tol * (before if self.unit == "relative" else 1.0), 1.0 / self.images)


def require_batch_norm(model: nn.Module, defense: str) -> None:
    """Refuse a model without batch normalisation.

    Raises:
        ModelError: it has none.
    """
    if not batch_norms(model):
        raise ModelError(
            f"defense {defense} prunes channels of BatchNorm layers and this model has none; use a model with "
            "BatchNorm (preact_resnet18, for one) or another defense (fp prunes without it)"
        )


def require_validation(n_validation: int, defense: str) -> None:
    """Refuse a clean set that leaves no validation images.

    Raises:
        DataError: there are none.
    """
    if n_validation == 0:
        raise DataError(
            f"defense {defense} decides on validation images how much it prunes, and a clean set of one image per "
            "class has none; use a larger clean_fraction"
        )


class MaskedModel(nn.Module):
    """A model with one factor m on every batch-normalisation channel: y = m gamma x_hat + beta.

    With noise, y = (m + delta) gamma x_hat + (1 + xi) beta (Wu & Wang 2021, arXiv:2110.14430, eq. 3). The model inside
    keeps its own gamma and beta; only running statistics move, and only where the batch's are used.

    Args:
        model: with batch normalisation; its gamma and beta are read now.
        batch_statistics: while training, normalise with the batch's statistics (public code) or the running ones.

    Attributes:
        mask: factors, (C,), in the order of `batch_norms`.
        closed_at: when a mask first reached 0, in steps, (C,); infinite where none did. Within a step it is where the
            straight line from the mask before to the value before clipping meets 0: a large step closes many at once,
            and those that it pushes furthest come first.
    """

    def __init__(self, model: Classifier, *, batch_statistics: bool) -> None:
        super().__init__()
        self.model, self.batch_statistics = model, batch_statistics
        self.norms = batch_norms(model)
        self.sizes = [norm.num_features for norm in self.norms.values()]
        # One flat tensor for all layers: a few large operations per step instead of some per layer.
        self.scale = torch.cat([norm.weight.detach() for norm in self.norms.values()])
        self.shift = torch.cat([norm.bias.detach() for norm in self.norms.values()])
        self.mask = nn.Parameter(torch.ones_like(self.scale))
        self.closed_at = torch.full_like(self.scale, float("inf"))
        self._before = torch.ones_like(self.scale)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits (N, K) of float images; ``noise`` is (2, C): delta, then xi, for all C channels of the model."""
        for norm in self.norms.values():
            norm.training = self.training and self.batch_statistics
        scale, shift = self.mask * self.scale, self.shift
        if noise is not None:
            scale, shift = (self.mask + noise[0]) * self.scale, (1.0 + noise[1]) * self.shift
        replaced = dict[str, Tensor]()
        for name, gamma, beta in zip(self.norms, scale.split(self.sizes), shift.split(self.sizes), strict=True):
            replaced[f"{name}.weight"], replaced[f"{name}.bias"] = gamma, beta
        logits: Tensor = functional_call(self.model, replaced, (images,))
        return logits

    @torch.no_grad()
    def clip(self, step: int = 0) -> None:
        """Masks back into [0, 1], after ``step``; notes which of them it closed."""
        closes = (self.mask <= 0.0) & self.closed_at.isinf()
        way = self._before / (self._before - self.mask).clamp(min=torch.finfo(self.mask.dtype).tiny)
        self.closed_at = torch.where(closes, step + way, self.closed_at)
        self.mask.clamp_(0.0, 1.0)
        self._before = self.mask.detach().clone()

    @torch.no_grad()
    def closing_order(self, threshold: float) -> Tensor:
        """Channels whose mask is at or below ``threshold``, int64, the one that closed first at the front.

        Those that never closed stand behind the others, the lowest mask first. By the mask alone all that were clipped
        to 0 would be one lump, to be pruned together or not at all.
        """
        by_mask = self.mask.detach().argsort(stable=True)
        order = by_mask[self.closed_at[by_mask].argsort(stable=True)]
        return order[self.mask.detach()[order] <= threshold]


@torch.no_grad()
def prune_channels(model: nn.Module, pruned: Tensor) -> None:
    """Set the scale of batch-normalisation channels to 0, in place; everything else stays.

    Args:
        pruned: bool (C,), over all channels of the model in the order of `batch_norms`.
    """
    norms = batch_norms(model)
    for norm, chosen in zip(norms.values(), pruned.split([norm.num_features for norm in norms.values()]), strict=True):
        norm.weight.masked_fill_(chosen, 0.0)


def validation_passes(acc_tol: float | None) -> int:
    """How often `prune_closed` looks at the validation set."""
    return 0 if acc_tol is None else 1 + 2 * LOOKS


def portions(count: int) -> list[int]:
    """The numbers of channels that are tried first, out of ``count``: `LOOKS`, close together where they are few.

    Growing as squares: what closed first matters most, and one channel more or less is half of the first two.
    """
    return [math.ceil(count * (look / LOOKS) ** 2) for look in range(1, LOOKS + 1)]


def between(low: int, high: int) -> list[int]:
    """The numbers that are tried next, above ``low`` up to ``high``: `LOOKS` of them, evenly."""
    return [low + math.ceil((high - low) * look / LOOKS) for look in range(1, LOOKS + 1)]


def prune_closed(
    model: Classifier,
    masked: MaskedModel,
    validation: ImageSet,
    trainer: Trainer,
    *,
    threshold: float,
    acc_tol: float | None,
    unit: ToleranceUnit,
    history: History,
    notes: dict[str, Any],
) -> Repair:
    """Prune, in place, channels that the masks have closed, in the order in which they closed, and hand the model back.

    Closed is what lies at or below ``threshold`` (the papers' rule): nothing above it is pruned, so the tolerance is
    not spent where closed channels do not cost it. Of the closed ones the largest number tried goes (`portions`, then
    `between`) whose validation accuracy is within the tolerance: the validation set alone decides. (BackdoorBench takes
    what has the lowest success rate on the *test* set.) Where none is, or nothing closed, the model is what it was and
    the repair has abstained.

    Args:
        model: with its original weights, not those the masks were trained with.
        masked: the trained masks.
        acc_tol, unit: see `Tolerance`; None: all that closed goes, without a look.
    """
    order = masked.closing_order(threshold)
    count = len(order)
    if acc_tol is not None:
        norms = batch_norms(model)
        original = [norm.weight.detach().clone() for norm in norms.values()]
        before = trainer.accuracy(model, validation)
        tolerance, count = Tolerance(acc_tol, unit, len(validation)), 0
        notes |= {"validation_before": before, "validation_after": before, "acc_tol": tolerance.largest_drop(before)}

        @torch.no_grad()
        def put_back() -> None:
            for norm, scale in zip(norms.values(), original, strict=True):
                norm.weight.copy_(scale)

        for round_ in range(2):
            coarse = portions(len(order))
            higher = [number for number in coarse if number > count]
            for candidate in between(count, min(higher, default=count)) if round_ else coarse:
                prune_channels(model, _chosen(order[:candidate], masked))
                accuracy = trainer.accuracy(model, validation)
                put_back()
                if tolerance.allows(accuracy, before) and candidate > count:
                    count, notes["validation_after"] = candidate, accuracy
    prune_channels(model, _chosen(order[:count], masked))
    mask = masked.mask.detach()
    notes |= {"pruned": count, "closed": len(order), "channels": len(mask)}
    notes |= {"mask_mean": float(mask.mean()), "mask_min": float(mask.min())}
    return Repair(model.eval(), status="ok" if count else "abstained", history=history, notes=notes)


def _chosen(channels: Tensor, masked: MaskedModel) -> Tensor:
    chosen = torch.zeros(len(masked.mask), dtype=torch.bool, device=masked.mask.device)
    chosen[channels] = True
    return chosen


def mean_magnitude(parts: Sequence[Tensor]) -> Tensor:
    """Mean |activation| per unit, float64 (C,), over batches of (N, C) or (N, C, H, W).

    The magnitude, not the mean: where no ReLU precedes the pool (PreAct-ResNet18 here) a unit may be strongly negative.
    """
    total = sum(part.double().abs().flatten(2).mean(2).sum(0) if part.dim() > 2 else part.double().abs().sum(0)
                for part in parts)  # fmt: skip
    assert isinstance(total, Tensor)
    return total / sum(len(part) for part in parts)
